{{- define "devstores.facts" -}}
component: stores
{{- end }}

{{/* Input: {root, store}. Labels that select the pods of one store. */}}
{{- define "devstores.selector" -}}
{{ include "bulkhead-lib.serviceSelector" .root }}
store: {{ .store }}
{{- end }}

{{/* The chart's own image has no canary: its suffix is that of `image`. */}}
{{- define "devstores.image" -}}
{{- (get .root.Values .store).image | default (include "bulkhead-lib.image" (dict "root" .root "track" "stable")) -}}
{{- end }}

{{/* Input: {root, store, port, command}. One pod behind a Service, with a volume if the store has `storage`. */}}
{{- define "devstores.store" -}}
{{- $name := printf "%s-%s" (include "bulkhead-lib.fullname" .root) .store -}}
{{- $values := get .root.Values .store -}}
{{- if not .root.Values.global.allowDevelopmentParts -}}
{{- fail "devstores: global.allowDevelopmentParts is false: switch devstores off and name real stores in global.state and global.vectors" -}}
{{- end -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  labels: {{- include "bulkhead-lib.serviceLabels" .root | nindent 4 }}
spec:
  type: ClusterIP
  selector: {{- include "devstores.selector" . | nindent 4 }}
  ports:
    - {name: tcp, port: {{ .port }}, targetPort: tcp, protocol: TCP, appProtocol: tcp}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $name }}
  labels: {{- include "bulkhead-lib.serviceLabels" .root | nindent 4 }}
spec:
  # One pod: none of the three is clustered here.
  replicas: 1
  serviceName: {{ $name }}
  selector:
    matchLabels: {{- include "devstores.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "bulkhead-lib.serviceLabels" .root | nindent 8 }}
        store: {{ .store }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with .root.Values.global.image.pullSecrets }}
      imagePullSecrets:
      {{- range $secret, $on := . }}
      {{- if $on }}
        - name: {{ $secret }}
      {{- end }}
      {{- end }}
      {{- end }}
      terminationGracePeriodSeconds: 30
      securityContext: {{- include "bulkhead-lib.podSecurity" . | nindent 8 }}
      containers:
        - name: {{ .store }}
          image: {{ include "devstores.image" . | quote }}
          imagePullPolicy: {{ .root.Values.global.image.pullPolicy }}
          command: {{- toYaml .command | nindent 12 }}
          ports: [{name: tcp, containerPort: {{ .port }}, protocol: TCP}]
          resources: {{- toYaml $values.resources | nindent 12 }}
          startupProbe: {tcpSocket: {port: tcp}, periodSeconds: 1, timeoutSeconds: 3, failureThreshold: 60}
          readinessProbe: {tcpSocket: {port: tcp}, periodSeconds: 5, timeoutSeconds: 3, failureThreshold: 2}
          livenessProbe: {tcpSocket: {port: tcp}, periodSeconds: 10, timeoutSeconds: 3, failureThreshold: 6}
          securityContext: {{- include "bulkhead-lib.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: /data}
            - {name: tmp, mountPath: /tmp}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: 64Mi}
        {{- if not $values.storage }}
        - name: data
          emptyDir: {sizeLimit: 1Gi}
        {{- end }}
  {{- if $values.storage }}
  volumeClaimTemplates:
    - apiVersion: v1
      kind: PersistentVolumeClaim
      metadata: {name: data}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with $values.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources: {requests: {storage: {{ $values.storage }}}}
  {{- end }}
{{- end }}
