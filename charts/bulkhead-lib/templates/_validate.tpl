{{/* Mistakes that a schema cannot see: each names the key, the conflict and the way out. Rendered before anything else. */}}
{{- define "bulkhead-lib.validate" -}}
{{- $name := .Chart.Name -}}
{{- $facts := include "bulkhead-lib.facts" . | fromYaml -}}
{{- with .Values.drain -}}
{{- $needs := add .preStopSeconds .graceSeconds .flushSeconds -}}
{{- if le (int .terminationSeconds) (int $needs) -}}
{{- fail (printf "%s.drain.terminationSeconds is %d, but preStop + grace + flush need more than %d: raise it, or lower drain.graceSeconds" $name (int .terminationSeconds) (int $needs)) -}}
{{- end -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "%s.autoscaling.minReplicas %d is above maxReplicas %d" $name (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- with .Values.canary -}}
{{- if and .enabled (not (or .image.tag .image.digest)) -}}
{{- fail (printf "%s.canary.enabled is true without canary.image.tag or canary.image.digest: name the version under trial" $name) -}}
{{- end -}}
{{- if and (gt (int .weight) 0) (not .enabled) -}}
{{- fail (printf "%s.canary.weight is %d but canary.enabled is false: enable the canary, or set the weight to 0" $name (int .weight)) -}}
{{- end -}}
{{- if and (gt (int .weight) 0) (not $.Values.global.mesh.enabled) -}}
{{- fail (printf "%s.canary.weight is %d but global.mesh.enabled is false: without a mesh the canary's share is its number of pods (canary.replicas)" $name (int .weight)) -}}
{{- end -}}
{{- end -}}
{{- with .Values.modelPort -}}
{{- if not .enabled -}}
{{- if gt (int .workers) 1 -}}
{{- fail (printf "%s.modelPort.workers is %d but modelPort.enabled is false: workers share the model port; enable it, or set workers to 1" $name (int .workers)) -}}
{{- end -}}
{{- if .masterKey.existingSecret -}}
{{- fail (printf "%s.modelPort.masterKey.existingSecret is set but modelPort.enabled is false: the key opens routes of the model port only; enable it, or take the key out" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.issuerServers (not .Values.global.config.oidc) -}}
{{- fail (printf "%s.issuerServers is set but global.config.oidc is empty: no issuer's tokens are taken; give the file, or take the servers out" $name) -}}
{{- end -}}
{{- with .Values.files -}}
{{- if and .existingClaim (not .enabled) -}}
{{- fail (printf "%s.files.existingClaim is set but files.enabled is false: enable files, or take the claim out" $name) -}}
{{- end -}}
{{- end -}}
{{- with .Values.segments -}}
{{- if and .volume.enabled .bucket.url -}}
{{- fail (printf "%s.segments.volume.enabled is true and segments.bucket.url is set: logs move to one place; take one of them out" $name) -}}
{{- end -}}
{{- if and .volume.existingClaim (not .volume.enabled) -}}
{{- fail (printf "%s.segments.volume.existingClaim is set but segments.volume.enabled is false: enable it, or take the claim out" $name) -}}
{{- end -}}
{{- if and .bucket.caKey (not .bucket.existingSecret) -}}
{{- fail (printf "%s.segments.bucket.caKey is set but existingSecret is empty: name the Secret that has it, or take it out" $name) -}}
{{- end -}}
{{- if and (not .bucket.url) (or .bucket.existingSecret .bucket.endpoint .bucket.server) -}}
{{- fail (printf "%s.segments.bucket.url is empty, but its endpoint, existingSecret or server is set: name the bucket, or take them out" $name) -}}
{{- end -}}
{{- end -}}
{{- if and $facts.replicated (eq .Values.global.env "prod") -}}
{{- $env := .Values.env | default dict -}}
{{- $least := get $env "BULKHEAD_LEAST_STATE_REPLICAS" | default "1" | int -}}
{{- if lt (get $env "BULKHEAD_STATE_REPLICAS" | default "0" | int) $least -}}
{{- fail (printf "%s.env.BULKHEAD_STATE_REPLICAS is below %d, and %s does not start so in prod: set it to how many replicas of `state` must have a write on disk" $name $least $name) -}}
{{- end -}}
{{- end -}}
{{- with .Values.global -}}
{{- if not .allowDevelopmentParts -}}
{{- range $part := list "simulator" "devstores" -}}
{{- if (get $.Values.global $part).enabled -}}
{{- fail (printf "global.%s.enabled is true but global.allowDevelopmentParts is false: switch it off and name the real part" $part) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $store := $facts.requiredStores -}}
{{- if not (or $.Values.global.devstores.enabled (get $.Values.global $store).existingSecret) -}}
{{- fail (printf "global.%s.existingSecret is empty and global.devstores.enabled is false: %s needs it; name the Secret with its address" $store $name) -}}
{{- end -}}
{{- end -}}
{{- if and (has "models.yaml" $facts.configFiles) (not .config.models) (not .simulator.enabled) -}}
{{- fail "global.config.models is empty and global.simulator.enabled is false: the shipped models.yaml knows only the simulator; set global.config.models (or --set-file global.config.models=models.yaml)" -}}
{{- end -}}
{{- end -}}
{{- end }}
