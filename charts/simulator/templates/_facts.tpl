{{- define "simulator.facts" -}}
module: simulator
component: simulator
ports: {http: 8090, metrics: 9466}
probes: {liveness: /health, readiness: /health}
public: false
calls: []
calledBy: [llm-gateway]
identity: ""
requiredStores: []
optionalStores: []
configFiles: []
prompts: false
internet: false
{{- end }}
