{{/* Subsets by the track label. `canary` is defined only while it has pods: an empty subset answers UNAVAILABLE. */}}
{{- define "bulkhead-lib.destinationrule" -}}
{{- if .Values.global.mesh.enabled }}
{{ include "bulkhead-lib.oneDestinationrule" (dict "root" . "suffix" "") }}
{{- if (.Values.modelPort | default dict).enabled }}
---
{{ include "bulkhead-lib.oneDestinationrule" (dict "root" . "suffix" "-models") }}
{{- end }}
{{- end }}
{{- end }}

{{- define "bulkhead-lib.oneDestinationrule" -}}
{{- $mesh := .root.Values.mesh -}}
{{- $pool := deepCopy $mesh.connectionPool -}}
{{- if or .suffix (include "bulkhead-lib.facts" .root | fromYaml).ports.http -}}
{{- /* HTTP entries only: it would recycle gRPC channels every ten calls. */ -}}
{{- $_ := set $pool.http "maxRequestsPerConnection" 10 -}}
{{- end -}}
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: {{ include "bulkhead-lib.fullname" .root }}{{ .suffix }}
  labels: {{- include "bulkhead-lib.serviceLabels" .root | nindent 4 }}
spec:
  host: {{ include "bulkhead-lib.fullname" .root }}{{ .suffix }}
  trafficPolicy:
    connectionPool: {{- toYaml $pool | nindent 6 }}
    outlierDetection: {{- toYaml $mesh.outlierDetection | nindent 6 }}
  subsets:
    {{- range $track := splitList "," (include "bulkhead-lib.tracks" .root) }}
    - name: {{ $track }}
      labels: {track: {{ $track }}}
    {{- end }}
{{- end }}
