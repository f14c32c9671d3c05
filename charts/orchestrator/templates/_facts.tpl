{{- define "orchestrator.facts" -}}
module: orchestrator
component: runs
ports: {grpc: 50051, metrics: 9462}
public: false
calls: [memory, llm-gateway, tool-executor]
calledBy: [gateway]
identity: issuer
requiredStores: [state]
optionalStores: []
replicated: true
configFiles: [agents.yaml, policies.yaml]
prompts: true
internet: true
{{- end }}
