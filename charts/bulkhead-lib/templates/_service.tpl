{{/* The Service, and its headless twin for clients that balance by themselves (no mesh). The metrics port is in neither. */}}
{{- define "bulkhead-lib.service" -}}
{{- $ports := (include "bulkhead-lib.facts" . | fromYaml).ports -}}
{{- $port := ternary (dict "name" "grpc" "appProtocol" "grpc") (dict "name" "http" "appProtocol" "http") (hasKey $ports "grpc") -}}
{{- $_ := set $port "port" (get $ports $port.name) -}}
{{ include "bulkhead-lib.oneService" (dict "root" . "suffix" "" "port" $port) }}
---
{{ include "bulkhead-lib.oneService" (dict "root" . "suffix" "-headless" "port" $port) }}
{{- if (.Values.modelPort | default dict).enabled }}
---
{{ include "bulkhead-lib.oneService" (dict "root" . "suffix" "-models" "port" (dict "name" "models" "appProtocol" "http" "port" $ports.models)) }}
{{- end }}
{{- end }}

{{/* Input: {root, suffix, port{name, port, appProtocol}}. */}}
{{- define "bulkhead-lib.oneService" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "bulkhead-lib.fullname" .root }}{{ .suffix }}
  labels: {{- include "bulkhead-lib.serviceLabels" .root | nindent 4 }}
spec:
  type: ClusterIP
  {{- if eq .suffix "-headless" }}
  clusterIP: None
  {{- end }}
  selector: {{- include "bulkhead-lib.serviceSelector" .root | nindent 4 }}
  ports:
    - name: {{ .port.name }}
      port: {{ .port.port }}
      targetPort: {{ .port.name }}
      protocol: TCP
      appProtocol: {{ .port.appProtocol }}
{{- end }}
