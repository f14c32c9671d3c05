{{/* One autoscaler a track. Scaling up is immediate, scaling down slow: a drained pod's runs must move. */}}
{{- define "bulkhead-lib.autoscaler" -}}
{{- if .Values.autoscaling.enabled }}
{{- range $track := splitList "," (include "bulkhead-lib.tracks" .) }}
---
{{ include "bulkhead-lib.trackAutoscaler" (dict "root" $ "track" $track) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "bulkhead-lib.trackAutoscaler" -}}
{{- $scaling := .root.Values.autoscaling -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "bulkhead-lib.trackName" . }}
  labels: {{- include "bulkhead-lib.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "bulkhead-lib.trackName" . }}}
  minReplicas: {{ ternary .root.Values.canary.replicas $scaling.minReplicas (eq .track "canary") }}
  maxReplicas: {{ $scaling.maxReplicas }}
  metrics:
    {{- range $resource, $percent := dict "cpu" $scaling.cpuPercent "memory" $scaling.memoryPercent }}
    - type: ContainerResource
      containerResource:
        name: {{ $resource }}
        container: {{ $.root.Chart.Name }}
        target: {type: Utilization, averageUtilization: {{ $percent }}}
    {{- end }}
  behavior:
    scaleUp:
      stabilizationWindowSeconds: 0
      selectPolicy: Max
      policies:
        - {type: Percent, value: 100, periodSeconds: 15}
        - {type: Pods, value: 4, periodSeconds: 15}
    scaleDown:
      stabilizationWindowSeconds: 300
      selectPolicy: Min
      policies:
        - {type: Percent, value: 10, periodSeconds: 60}
        - {type: Pods, value: 2, periodSeconds: 60}
{{- end }}
