{{- define "llm-gateway.facts" -}}
module: llm_gateway
component: models
ports: {grpc: 50052, models: 8081, metrics: 9463}
public: false
calls: []
calledBy: [gateway, orchestrator, memory]
identity: issuer
requiredStores: [state]
optionalStores: [cache]
configFiles: [models.yaml, policies.yaml]
prompts: false
internet: true
{{- end }}
