{{/* Input: {root, track}. */}}
{{- define "bulkhead-lib.podSpec" -}}
{{- $values := .root.Values -}}
{{- $facts := include "bulkhead-lib.facts" .root | fromYaml -}}
serviceAccountName: {{ include "bulkhead-lib.fullname" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $values.global.image.pullSecrets }}
imagePullSecrets:
{{- range $secret, $on := . }}
{{- if $on }}
  - name: {{ $secret }}
{{- end }}
{{- end }}
{{- end }}
terminationGracePeriodSeconds: {{ $values.drain.terminationSeconds }}
securityContext: {{- include "bulkhead-lib.podSecurity" . | nindent 2 }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "bulkhead-lib.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
containers:
  - name: {{ .root.Chart.Name }}
    image: {{ include "bulkhead-lib.image" . | quote }}
    imagePullPolicy: {{ $values.global.image.pullPolicy }}
    command: [python, -m, services.{{ $facts.module }}]
    envFrom:
      - configMapRef: {name: {{ include "bulkhead-lib.fullname" .root }}-env}
      {{- range $secret, $on := $values.envFromSecrets }}
      {{- if $on }}
      - secretRef: {name: {{ $secret }}}
      {{- end }}
      {{- end }}
    env: {{- include "bulkhead-lib.podEnvironment" . | nindent 6 }}
    ports: {{- include "bulkhead-lib.containerPorts" .root | nindent 6 }}
    resources: {{- toYaml $values.resources | nindent 6 }}
    {{- include "bulkhead-lib.probes" .root | nindent 4 }}
    {{- if gt (int $values.drain.preStopSeconds) 0 }}
    lifecycle:
      preStop: {sleep: {seconds: {{ $values.drain.preStopSeconds }}}}
    {{- end }}
    securityContext: {{- include "bulkhead-lib.containerSecurity" . | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- if $facts.identity }}
      - {name: identity, mountPath: /etc/bulkhead/identity, readOnly: true}
      {{- end }}
      {{- if include "bulkhead-lib.envelope" .root }}
      - {name: envelope, mountPath: /etc/bulkhead/envelope, readOnly: true}
      {{- end }}
      {{- if $facts.configFiles }}
      - {name: config, mountPath: /etc/bulkhead/config, readOnly: true}
      {{- end }}
      {{- if ($values.files | default dict).enabled }}
      - {name: files, mountPath: /data/files}
      {{- end }}
      {{- with $values.segments }}
      {{- if .volume.enabled }}
      - {name: segments, mountPath: /data/segments}
      {{- end }}
      {{- if .bucket.existingSecret }}
      - {name: segments-credentials, mountPath: /etc/bulkhead/segments, readOnly: true}
      {{- end }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 256Mi}
  {{- if $facts.identity }}
  - {{- include "bulkhead-lib.identityVolume" .root | nindent 4 }}
  {{- end }}
  {{- with include "bulkhead-lib.envelope" .root }}
  - name: envelope
    secret:
      secretName: {{ . }}
      defaultMode: 0440
      items:
        - {key: {{ $.root.Values.global.envelope.key }}, path: keys.json}
  {{- end }}
  {{- if $facts.configFiles }}
  - {{- include "bulkhead-lib.configVolume" .root | nindent 4 }}
  {{- end }}
  {{- if ($values.files | default dict).enabled }}
  - name: files
    persistentVolumeClaim: {claimName: {{ $values.files.existingClaim | default (printf "%s-files" (include "bulkhead-lib.fullname" .root)) }}}
  {{- end }}
  {{- with $values.segments }}
  {{- if .volume.enabled }}
  - name: segments
    persistentVolumeClaim: {claimName: {{ .volume.existingClaim | default (printf "%s-segments" (include "bulkhead-lib.fullname" $.root)) }}}
  {{- end }}
  {{- with .bucket }}
  {{- if .existingSecret }}
  - name: segments-credentials
    secret:
      secretName: {{ .existingSecret }}
      defaultMode: 0440
      items:
        - {key: {{ .accessKeyIdKey }}, path: access_key_id}
        - {key: {{ .secretAccessKeyKey }}, path: secret_access_key}
        {{- with .caKey }}
        - {key: {{ . }}, path: ca.pem}
        {{- end }}
  {{- end }}
  {{- end }}
  {{- end }}
{{- end }}

{{/* PSS restricted, and more: a read-only root. 65532 is the user that the Dockerfile makes. */}}
{{- define "bulkhead-lib.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "bulkhead-lib.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- end }}

{{/* The Secret with the root keys of personal data, for the two services that keep such; empty for all others, and where there is none. */}}
{{- define "bulkhead-lib.envelope" -}}
{{- if has (include "bulkhead-lib.facts" . | fromYaml).module (list "orchestrator" "memory") -}}
{{- .Values.global.envelope.existingSecret -}}
{{- end -}}
{{- end }}

{{/* Verifiers get the public keys only, issuers their own private key besides: no other's is even mounted. */}}
{{- define "bulkhead-lib.identityVolume" -}}
{{- $identity := .Values.global.identity -}}
{{- $facts := include "bulkhead-lib.facts" . | fromYaml -}}
name: identity
secret:
  secretName: {{ .Values.identity.existingSecret | default $identity.existingSecret | required (printf "%s: global.identity.existingSecret is empty" .Chart.Name) }}
  defaultMode: 0440
  items:
    - {key: {{ $identity.jwksKey }}, path: jwks.json}
    {{- if eq $facts.identity "issuer" }}
    - {key: {{ $facts.module }}.pem, path: signing-key.pem}
    {{- end }}
{{- end }}

{{- define "bulkhead-lib.containerPorts" -}}
{{- $ports := (include "bulkhead-lib.facts" . | fromYaml).ports -}}
{{- range $name := list "grpc" "http" "metrics" }}
{{- with get $ports $name }}
- {name: {{ $name }}, containerPort: {{ . }}, protocol: TCP}
{{- end }}
{{- end }}
{{- if (.Values.modelPort | default dict).enabled }}
- {name: models, containerPort: {{ $ports.models }}, protocol: TCP}
{{- range $worker := untilStep 1 (int .Values.modelPort.workers) 1 }}
- {name: metrics-{{ $worker }}, containerPort: {{ add $ports.metrics $worker }}, protocol: TCP}
{{- end }}
{{- end }}
{{- end }}

{{/* Liveness asks for the process and its loop only: a probe on readiness would restart pods that should merely leave the
     rotation. A startup probe holds both back until the process serves. */}}
{{- define "bulkhead-lib.probes" -}}
startupProbe:
  {{- include "bulkhead-lib.probe" (dict "root" . "of" "liveness") | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 60
readinessProbe:
  {{- include "bulkhead-lib.probe" (dict "root" . "of" "readiness") | nindent 2 }}
  initialDelaySeconds: 5
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  {{- include "bulkhead-lib.probe" (dict "root" . "of" "liveness") | nindent 2 }}
  initialDelaySeconds: 30
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 3
{{- end }}

{{- define "bulkhead-lib.probe" -}}
{{- $facts := include "bulkhead-lib.facts" .root | fromYaml -}}
{{- if $facts.ports.grpc -}}
grpc: {port: {{ $facts.ports.grpc }}, service: {{ .of }}}
{{- else -}}
httpGet: {path: {{ get $facts.probes .of }}, port: http}
{{- end -}}
{{- end }}
