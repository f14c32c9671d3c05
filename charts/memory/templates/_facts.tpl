{{- define "memory.facts" -}}
module: memory
component: memory
ports: {grpc: 50054, metrics: 9465}
public: false
calls: [llm-gateway]
calledBy: [gateway, orchestrator, tool-executor]
identity: issuer
requiredStores: [state, vectors]
optionalStores: []
replicated: true
configFiles: []
prompts: false
internet: false
{{- end }}
