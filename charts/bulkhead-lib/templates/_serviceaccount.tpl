{{/* An identity of its own for each service, for mesh policies; no API token is mounted. */}}
{{- define "bulkhead-lib.serviceaccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "bulkhead-lib.fullname" . }}
  labels: {{- include "bulkhead-lib.serviceLabels" . | nindent 4 }}
  {{- with .Values.serviceAccount.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
