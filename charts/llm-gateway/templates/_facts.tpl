{{- define "llm-gateway.facts" -}}
module: llm_gateway
component: models
ports: {grpc: 50052, models: 8081, metrics: 9463}
public: false
calls: []
calledBy: [gateway, orchestrator, tool-executor, memory]
identity: issuer
requiredStores: [state]
optionalStores: [cache]
replicated: true
configFiles: [models.yaml, policies.yaml]
optionalConfigFiles: [prices.yaml]
prompts: false
internet: true
{{- end }}
