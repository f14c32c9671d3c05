{{/* A budget for the stable track, with the Deployment's own selector so that it cannot drift. None at one replica: it would
     block every node drain. */}}
{{- define "bulkhead-lib.disruptionbudget" -}}
{{- $replicas := ternary .Values.autoscaling.minReplicas .Values.replicas .Values.autoscaling.enabled -}}
{{- if and .Values.podDisruptionBudget.enabled (gt (int $replicas) 1) -}}
{{- $input := dict "root" . "track" "stable" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "bulkhead-lib.fullname" . }}
  labels: {{- include "bulkhead-lib.labels" $input | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "bulkhead-lib.selector" $input | nindent 6 }}
{{- end }}
{{- end }}
