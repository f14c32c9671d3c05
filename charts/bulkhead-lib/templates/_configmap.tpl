{{/* Two ConfigMaps. `-env` holds process settings: a change rolls the pods. `-config` holds product configuration, mounted
     as a folder (never by subPath, which would freeze it): a change is picked up without restart, so it is in no checksum. */}}
{{- define "bulkhead-lib.configmap" -}}
{{- include "bulkhead-lib.validate" . -}}
{{- $facts := include "bulkhead-lib.facts" . | fromYaml -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "bulkhead-lib.fullname" . }}-env
  labels: {{- include "bulkhead-lib.serviceLabels" . | nindent 4 }}
data: {{- include "bulkhead-lib.settings" . | nindent 2 }}
{{- if $facts.configFiles }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "bulkhead-lib.fullname" . }}-config
  labels: {{- include "bulkhead-lib.serviceLabels" . | nindent 4 }}
data:
{{- range $file := include "bulkhead-lib.configFiles" . | fromJsonArray }}
  {{ $file }}: {{ include "bulkhead-lib.configFile" (dict "root" $ "file" $file) | toJson }}
{{- end }}
{{- range $name, $text := include "bulkhead-lib.prompts" . | fromJson }}
  prompts.{{ $name }}: {{ $text | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{/* Names of the files, as JSON: those that the service needs, and optional ones that are given. */}}
{{- define "bulkhead-lib.configFiles" -}}
{{- $facts := include "bulkhead-lib.facts" . | fromYaml -}}
{{- $files := $facts.configFiles -}}
{{- range $file := $facts.optionalConfigFiles -}}
{{- if get $.Values.global.config (trimSuffix ".yaml" $file) -}}
{{- $files = append $files $file -}}
{{- end -}}
{{- end -}}
{{- toJson $files -}}
{{- end }}

{{/* Input: {root, file}. The text of one product configuration file: the value, else the file shipped with the chart. */}}
{{- define "bulkhead-lib.configFile" -}}
{{- $given := get .root.Values.global.config (trimSuffix ".yaml" .file) -}}
{{- if not $given -}}
{{- .root.Files.Get (printf "config/%s" .file) | required (printf "%s: config/%s is not in the chart: its `config` link is broken" .root.Chart.Name .file) -}}
{{- else if kindIs "string" $given -}}
{{- $given -}}
{{- else -}}
{{- toYaml $given -}}
{{- end -}}
{{- end }}

{{/* Prompt templates by file name, as JSON: the shipped ones, then those of the values. */}}
{{- define "bulkhead-lib.prompts" -}}
{{- $prompts := dict -}}
{{- if (include "bulkhead-lib.facts" . | fromYaml).prompts -}}
{{- range $path, $text := .Files.Glob "config/prompts/*.md" -}}
{{- $_ := set $prompts (base $path) (toString $text) -}}
{{- end -}}
{{- $prompts = merge (deepCopy .Values.global.config.prompts) $prompts -}}
{{- end -}}
{{- toJson $prompts -}}
{{- end }}

{{/* The folder as the service sees it: prompts in a folder of their own. */}}
{{- define "bulkhead-lib.configVolume" -}}
name: config
configMap:
  name: {{ include "bulkhead-lib.fullname" . }}-config
  items:
  {{- range $file := include "bulkhead-lib.configFiles" . | fromJsonArray }}
    - {key: {{ $file }}, path: {{ $file }}}
  {{- end }}
  {{- range $name, $_ := include "bulkhead-lib.prompts" . | fromJson }}
    - {key: prompts.{{ $name }}, path: prompts/{{ $name }}}
  {{- end }}
{{- end }}
