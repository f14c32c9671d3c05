{{- define "gateway.facts" -}}
module: gateway
component: api
ports: {http: 8080, metrics: 9461}
probes: {liveness: /health, readiness: /ready}
public: true
calls: [orchestrator, memory, tool-executor, llm-gateway]
calledBy: []
identity: issuer
requiredStores: [state]
optionalStores: []
configFiles: [policies.yaml]
optionalConfigFiles: [oidc.yaml]
prompts: false
internet: false
{{- end }}
