{{/* Routes of the service. The header route exists only while a canary does; without one, `x-canary: true` is served by the
     stable track like any other call. */}}
{{- define "bulkhead-lib.virtualservice" -}}
{{- if .Values.global.mesh.enabled }}
{{ include "bulkhead-lib.oneVirtualservice" (dict "root" . "suffix" "" "hosts" .Values.mesh.hosts "gateways" .Values.mesh.gateways "routes" .Values.mesh.routes) }}
{{- $models := .Values.modelPort | default dict }}
{{- if $models.enabled }}
---
{{ include "bulkhead-lib.oneVirtualservice" (dict "root" . "suffix" "-models" "hosts" $models.hosts "gateways" $models.gateways "routes" dict) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Input: {root, suffix, hosts, gateways, routes}. */}}
{{- define "bulkhead-lib.oneVirtualservice" -}}
{{- $root := .root -}}
{{- $host := printf "%s%s" (include "bulkhead-lib.fullname" .root) .suffix -}}
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: {{ $host }}
  labels: {{- include "bulkhead-lib.serviceLabels" .root | nindent 4 }}
spec:
  hosts:
    - {{ $host }}
    {{- range .hosts }}
    - {{ . | quote }}
    {{- end }}
  {{- with .gateways }}
  gateways:
    - mesh
    {{- range . }}
    - {{ . }}
    {{- end }}
  {{- end }}
  http:
    {{- range $name, $route := .routes }}
    {{- include "bulkhead-lib.route" (dict "root" $root "host" $host "name" $name "route" $route) | nindent 4 }}
    {{- end }}
    {{- include "bulkhead-lib.route" (dict "root" .root "host" $host "name" "otherwise" "route" .root.Values.mesh.otherwise) | nindent 4 }}
{{- end }}

{{/* Input: {root, host, name, route{methods, timeout, retries}}: a rule for the header (canary only), and one by weight. */}}
{{- define "bulkhead-lib.route" -}}
{{- $canary := .root.Values.canary -}}
{{- $host := .host -}}
{{- $rules := list (dict "name" .name "header" false) -}}
{{- if $canary.enabled -}}
{{- $rules = prepend $rules (dict "name" (printf "%s-canary" .name) "header" true) -}}
{{- end -}}
{{- range $rule := $rules }}
- name: {{ $rule.name }}
  {{- if or $.route.methods $rule.header }}
  match:
    {{- range $method := $.route.methods | default (list "") }}
    - {{- if $method }}
      uri: {exact: /{{ $method }}}
      {{- end }}
      {{- if $rule.header }}
      headers: {x-canary: {exact: "true"}}
      {{- end }}
    {{- end }}
  {{- end }}
  route:
    {{- if $rule.header }}
    - destination: {host: {{ $host }}, subset: canary}
    {{- else }}
    - destination: {host: {{ $host }}, subset: stable}
      {{- if $canary.enabled }}
      weight: {{ sub 100 (int $canary.weight) }}
    - destination: {host: {{ $host }}, subset: canary}
      weight: {{ int $canary.weight }}
      {{- end }}
    {{- end }}
  timeout: {{ $.route.timeout }}
  retries: {{- toYaml $.route.retries | nindent 4 }}
{{- end }}
{{- end }}
