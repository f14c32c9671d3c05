{{/* Default deny in and out of the service's pods, then the peers of the call graph. Probes come from the node and need no rule. */}}
{{- define "bulkhead-lib.networkpolicy" -}}
{{- $policy := .Values.global.networkPolicy -}}
{{- if $policy.enabled -}}
{{- $facts := include "bulkhead-lib.facts" . | fromYaml -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "bulkhead-lib.fullname" . }}
  labels: {{- include "bulkhead-lib.serviceLabels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- include "bulkhead-lib.serviceSelector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    {{- with $facts.calledBy }}
    - from:
        {{- range . }}
        - podSelector: {matchLabels: {{ include "bulkhead-lib.peer" (dict "root" $ "service" .) }}}
        {{- end }}
      ports: [{port: {{ ternary "grpc" "http" (hasKey $facts.ports "grpc") }}, protocol: TCP}]
    {{- end }}
    {{- if $facts.public }}
    - ports: [{port: http, protocol: TCP}]
      {{- include "bulkhead-lib.namespaces" $policy.ingressNamespaces | nindent 6 }}
    {{- end }}
    {{- if (.Values.modelPort | default dict).enabled }}
    - ports: [{port: models, protocol: TCP}]
      {{- include "bulkhead-lib.namespaces" $policy.ingressNamespaces | nindent 6 }}
    {{- end }}
    {{- if include "bulkhead-lib.namespaces" $policy.metricsNamespaces }}
    - ports:
        - {port: metrics, protocol: TCP}
        {{- range $worker := untilStep 1 (int (dig "modelPort" "workers" 1 (.Values | toJson | fromJson))) 1 }}
        - {port: metrics-{{ $worker }}, protocol: TCP}
        {{- end }}
      {{- include "bulkhead-lib.namespaces" $policy.metricsNamespaces | nindent 6 }}
    {{- end }}
  egress:
    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}]
      ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
    {{- range $callee := $facts.calls }}
    - to: [{podSelector: {matchLabels: {{ include "bulkhead-lib.peer" (dict "root" $ "service" $callee) }}}}]
      ports: [{port: grpc, protocol: TCP}]
    {{- end }}
    {{- include "bulkhead-lib.storeEgress" . | nindent 4 }}
    {{- if .Values.global.otlpEndpoint }}
    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ $policy.collectorNamespace }}}}}]
      ports: [{port: 4317, protocol: TCP}]
    {{- end }}
    {{- if .Values.global.mesh.enabled }}
    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: istio-system}}}]
      ports: [{port: 15012, protocol: TCP}]
    {{- end }}
    {{- /* Issuers of tokens are outside; a service that takes none has nothing there. */}}
    {{- if or $facts.internet (has "oidc.yaml" (include "bulkhead-lib.configFiles" . | fromJsonArray)) }}
    # The outside world over TLS; private and link-local ranges (cloud metadata) stay closed.
    - to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 100.64.0.0/10, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16]}}]
      ports: [{port: 443, protocol: TCP}]
    {{- end }}
    {{- range $servers := list .Values.modelServers .Values.issuerServers }}
    {{- range $name, $server := $servers }}
    {{- include "bulkhead-lib.serverEgress" $server | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- with dig "segments" "bucket" "server" dict (.Values | toJson | fromJson) }}
    {{- include "bulkhead-lib.serverEgress" . | nindent 4 }}
    {{- end }}
    {{- if and (has "models.yaml" $facts.configFiles) .Values.global.simulator.enabled }}
    - to: [{podSelector: {matchLabels: {{ include "bulkhead-lib.peer" (dict "root" . "service" "simulator") }}}}]
      ports: [{port: http, protocol: TCP}]
    {{- end }}
{{- end }}
{{- end }}

{{/* Input: {root, service}. The labels of another service's pods in this release, in flow style. */}}
{{- define "bulkhead-lib.peer" -}}
{app.kubernetes.io/name: {{ .service }}, app.kubernetes.io/instance: {{ .root.Release.Name }}}
{{- end }}

{{/* Input: a map of namespace names. A `from` clause, or nothing when the map is empty. */}}
{{- define "bulkhead-lib.namespaces" -}}
{{- $names := list -}}
{{- range $name, $on := . -}}{{- if $on -}}{{- $names = append $names $name -}}{{- end -}}{{- end -}}
{{- with $names -}}
from: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}]}}]
{{- end -}}
{{- end }}

{{/* Input: {cidr or namespace, port}. */}}
{{- define "bulkhead-lib.serverEgress" -}}
- to:
    {{- if .cidr }}
    - ipBlock: {cidr: {{ .cidr }}}
    {{- else }}
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .namespace }}}}
    {{- end }}
  ports: [{port: {{ .port }}, protocol: TCP}]
{{- end }}

{{- define "bulkhead-lib.storeEgress" -}}
{{- $facts := include "bulkhead-lib.facts" . | fromYaml -}}
{{- if concat $facts.requiredStores $facts.optionalStores }}
{{- if .Values.global.devstores.enabled }}
- to: [{podSelector: {matchLabels: {{ include "bulkhead-lib.peer" (dict "root" . "service" "devstores") }}}}]
  ports: [{port: 6379, protocol: TCP}, {port: 19530, protocol: TCP}]
{{- else }}
- to:
  {{- range .Values.global.networkPolicy.storeCidrs }}
    - ipBlock: {cidr: {{ . }}}
  {{- end }}
  ports:
  {{- range .Values.global.networkPolicy.storePorts }}
    - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}
