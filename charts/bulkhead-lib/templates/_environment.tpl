{{/* Process settings that both tracks share; a change of any rolls the pods (checksum/config). */}}
{{- define "bulkhead-lib.settings" -}}
{{- $facts := include "bulkhead-lib.facts" . | fromYaml -}}
{{- $global := .Values.global -}}
BULKHEAD_ENV: {{ $global.env | quote }}
BULKHEAD_HOST: "0.0.0.0"
BULKHEAD_METRICS_PORT: {{ $facts.ports.metrics | quote }}
BULKHEAD_LOG_FORMAT: {{ $global.logFormat | quote }}
{{- with $global.logLevel }}
BULKHEAD_LOG_LEVEL: {{ . | quote }}
{{- end }}
BULKHEAD_LOG_SINK: stdout
BULKHEAD_TRACE_SAMPLE_RATIO: {{ $global.traceSampleRatio | quote }}
{{- with $global.otlpEndpoint }}
BULKHEAD_OTLP_ENDPOINT: {{ . | quote }}
{{- end }}
BULKHEAD_DRAIN_GRACE_S: {{ .Values.drain.graceSeconds | quote }}
BULKHEAD_DRAIN_FLUSH_S: {{ .Values.drain.flushSeconds | quote }}
{{- with $facts.ports.grpc }}
BULKHEAD_GRPC_PORT: {{ . | quote }}
{{- end }}
{{- if $facts.ports.http }}
BULKHEAD_HTTP_PORT: {{ $facts.ports.http | quote }}
{{- else if (.Values.modelPort | default dict).enabled }}
BULKHEAD_HTTP_PORT: {{ $facts.ports.models | quote }}
{{- if gt (int .Values.modelPort.workers) 1 }}
BULKHEAD_HTTP_WORKERS: {{ .Values.modelPort.workers | quote }}
{{- end }}
{{- end }}
{{- if (.Values.files | default dict).enabled }}
BULKHEAD_FILES_DIR: /data/files
{{- end }}
{{- with .Values.segments }}
{{- if .volume.enabled }}
BULKHEAD_SEGMENTS_DIR: /data/segments
{{- end }}
{{- with .bucket }}
{{- if .url }}
BULKHEAD_SEGMENTS_URL: {{ .url | quote }}
{{- with .endpoint }}
BULKHEAD_SEGMENTS_ENDPOINT: {{ . | quote }}
{{- end }}
BULKHEAD_SEGMENTS_REGION: {{ .region | quote }}
BULKHEAD_SEGMENTS_PATH_STYLE: {{ .pathStyle | quote }}
{{- if .existingSecret }}
BULKHEAD_SEGMENTS_CREDENTIALS_DIR: /etc/bulkhead/segments
{{- if .caKey }}
BULKHEAD_SEGMENTS_CA_FILE: /etc/bulkhead/segments/ca.pem
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if $facts.identity }}
BULKHEAD_IDENTITY_KEYS_FILE: /etc/bulkhead/identity/jwks.json
{{- if eq $facts.identity "issuer" }}
BULKHEAD_IDENTITY_SIGNING_KEY_FILE: /etc/bulkhead/identity/signing-key.pem
{{- end }}
{{- end }}
{{- if include "bulkhead-lib.envelope" . }}
BULKHEAD_ENVELOPE_KEYS_FILE: /etc/bulkhead/envelope/keys.json
{{- end }}
{{- range $callee := $facts.calls }}
BULKHEAD_{{ $callee | replace "-" "_" | upper }}_ADDRESS: {{ include "bulkhead-lib.address" (dict "root" $ "service" $callee) | quote }}
{{- end }}
{{- if $facts.configFiles }}
BULKHEAD_CONFIG_DIR: /etc/bulkhead/config
{{- end }}
{{- if $global.devstores.enabled }}
{{- range $store := concat $facts.requiredStores $facts.optionalStores }}
{{- if eq $store "vectors" }}
BULKHEAD_MILVUS_URI: {{ printf "http://%s-devstores-vectors:19530" $.Release.Name | quote }}
{{- else }}
BULKHEAD_{{ upper $store }}_URL: {{ printf "redis://%s-devstores-%s:6379/0" $.Release.Name $store | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (has "models.yaml" $facts.configFiles) $global.simulator.enabled }}
BULKHEAD_SIMULATOR_URL: {{ printf "http://%s-simulator:8090/v1" .Release.Name | quote }}
{{- end }}
{{- range $key, $value := .Values.env }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* Input: {root, track}. What differs by pod or track, and what comes from Secrets. */}}
{{- define "bulkhead-lib.podEnvironment" -}}
{{- $facts := include "bulkhead-lib.facts" .root | fromYaml -}}
{{- $global := .root.Values.global -}}
- name: BULKHEAD_INSTANCE
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: BULKHEAD_TRACK
  value: {{ .track }}
- name: BULKHEAD_VERSION
  value: {{ include "bulkhead-lib.version" . | quote }}
{{- $masterKey := dig "modelPort" "masterKey" dict (.root.Values | toJson | fromJson) }}
{{- if $masterKey.existingSecret }}
- name: BULKHEAD_MASTER_KEY
  valueFrom: {secretKeyRef: {name: {{ $masterKey.existingSecret }}, key: {{ $masterKey.key }}}}
{{- end }}
{{- if not $global.devstores.enabled }}
{{- range $store := concat $facts.requiredStores $facts.optionalStores }}
{{- $secret := get $global $store }}
{{- if and $secret.existingSecret (eq $store "vectors") }}
- name: BULKHEAD_MILVUS_URI
  valueFrom: {secretKeyRef: {name: {{ $secret.existingSecret }}, key: {{ $secret.uriKey }}}}
- name: BULKHEAD_MILVUS_TOKEN
  valueFrom: {secretKeyRef: {name: {{ $secret.existingSecret }}, key: {{ $secret.tokenKey }}, optional: true}}
{{- else if $secret.existingSecret }}
- name: BULKHEAD_{{ upper $store }}_URL
  valueFrom: {secretKeyRef: {name: {{ $secret.existingSecret }}, key: {{ $secret.key }}}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
