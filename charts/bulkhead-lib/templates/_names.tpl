{{/* The facts of a service that no value may change: ports, callees, what it mounts. Each application chart defines its own. */}}
{{- define "bulkhead-lib.facts" -}}
{{- include (printf "%s.facts" .Chart.Name) . -}}
{{- end }}

{{/* <release>-<chart>. The limit leaves room for the longest suffix (-tool-executor-headless) within 63 characters. */}}
{{- define "bulkhead-lib.fullname" -}}
{{- if gt (len .Release.Name) 40 -}}
{{- fail (printf "release name %q is longer than 40 characters: choose a shorter one" .Release.Name) -}}
{{- end -}}
{{- printf "%s-%s" .Release.Name .Chart.Name -}}
{{- end }}

{{/* Input: {root, track}. The stable Deployment has the plain name, so that switching a canary on never renames it. */}}
{{- define "bulkhead-lib.trackName" -}}
{{- include "bulkhead-lib.fullname" .root -}}{{- if ne .track "stable" -}}-{{ .track }}{{- end -}}
{{- end }}

{{/* What a Service selects: both tracks. */}}
{{- define "bulkhead-lib.serviceSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ (include "bulkhead-lib.facts" . | fromYaml).component }}
{{- end }}

{{/* Input: {root, track}. What a Deployment, its budget and its spread select. Immutable: never add a version here. */}}
{{- define "bulkhead-lib.selector" -}}
{{ include "bulkhead-lib.serviceSelector" .root }}
track: {{ .track }}
{{- end }}

{{/* Input: {root, track}. Labels of every object. */}}
{{- define "bulkhead-lib.labels" -}}
{{ include "bulkhead-lib.selector" . }}
app.kubernetes.io/version: {{ include "bulkhead-lib.version" . | trunc 63 | trimSuffix "-" | trimSuffix "." | trimSuffix "_" | quote }}
app.kubernetes.io/part-of: bulkhead
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end }}

{{/* Input: root. Labels of what belongs to the service and to no track. */}}
{{- define "bulkhead-lib.serviceLabels" -}}
{{ include "bulkhead-lib.serviceSelector" . }}
app.kubernetes.io/version: {{ include "bulkhead-lib.version" (dict "root" . "track" "stable") | trunc 63 | trimSuffix "-" | trimSuffix "." | trimSuffix "_" | quote }}
app.kubernetes.io/part-of: bulkhead
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end }}

{{/* Input: {root, track}. The image of a track, without its registry and repository: digest, or tag. */}}
{{- define "bulkhead-lib.imageSuffix" -}}
{{- $own := .root.Values.image -}}
{{- if eq .track "canary" -}}{{- $own = .root.Values.canary.image -}}{{- end -}}
{{- if $own.digest -}}@{{ $own.digest }}
{{- else -}}:{{ $own.tag | default .root.Values.global.image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Input: {root, track}. What the service reports as its version. */}}
{{- define "bulkhead-lib.version" -}}
{{- include "bulkhead-lib.imageSuffix" . | trimPrefix ":" | trimPrefix "@sha256:" | trunc 40 -}}
{{- end }}

{{- define "bulkhead-lib.image" -}}
{{- with .root.Values.global.image.registry -}}{{ . }}/{{- end -}}
{{- required (printf "%s: image.repository is empty" .root.Chart.Name) .root.Values.image.repository -}}
{{- include "bulkhead-lib.imageSuffix" . -}}
{{- end }}

{{/* Input: {root, service}, a chart's name. host:port of a callee: its ClusterIP Service in a mesh, whose sidecars balance,
     else the headless twin, whose addresses the client balances over. */}}
{{- define "bulkhead-lib.address" -}}
{{- $ports := dict "orchestrator" 50051 "llm-gateway" 50052 "tool-executor" 50053 "memory" 50054 -}}
{{- $given := get .root.Values.global.addresses (.service | replace "-" "_" | camelcase | untitle) -}}
{{- if $given -}}{{ $given }}
{{- else -}}
{{- .root.Release.Name }}-{{ .service }}{{ if not .root.Values.global.mesh.enabled }}-headless{{ end }}:{{ get $ports .service }}
{{- end -}}
{{- end }}

{{/* The tracks that are rendered, comma separated. */}}
{{- define "bulkhead-lib.tracks" -}}
stable{{ if .Values.canary.enabled }},canary{{ end }}
{{- end }}
