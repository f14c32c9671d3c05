{{/* One Deployment a track. They differ in name, track label, image and number of pods, and in nothing else. */}}
{{- define "bulkhead-lib.deployment" -}}
{{- include "bulkhead-lib.validate" . -}}
{{- range $track := splitList "," (include "bulkhead-lib.tracks" .) }}
---
{{ include "bulkhead-lib.trackDeployment" (dict "root" $ "track" $track) }}
{{- end }}
{{- end }}

{{- define "bulkhead-lib.trackDeployment" -}}
{{- $values := .root.Values -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "bulkhead-lib.trackName" . }}
  labels: {{- include "bulkhead-lib.labels" . | nindent 4 }}
spec:
  {{- if not $values.autoscaling.enabled }}
  replicas: {{ ternary $values.canary.replicas $values.replicas (eq .track "canary") }}
  {{- end }}
  revisionHistoryLimit: 5
  progressDeadlineSeconds: 300
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  selector:
    matchLabels: {{- include "bulkhead-lib.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "bulkhead-lib.labels" . | nindent 8 }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        checksum/config: {{ include "bulkhead-lib.settings" .root | sha256sum }}
        kubectl.kubernetes.io/default-container: {{ .root.Chart.Name }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec: {{- include "bulkhead-lib.podSpec" . | nindent 6 }}
{{- end }}
