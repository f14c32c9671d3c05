{{- define "tool-executor.facts" -}}
module: tool_executor
component: tools
ports: {grpc: 50053, metrics: 9464}
public: false
calls: [memory, llm-gateway]
calledBy: [gateway, orchestrator]
identity: verifier
requiredStores: [state]
optionalStores: []
replicated: true
configFiles: [tools.yaml, policies.yaml]
prompts: false
internet: true
{{- end }}
