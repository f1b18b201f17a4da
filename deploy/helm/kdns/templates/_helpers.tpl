{{- define "kdns.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{- define "kdns.k8sapp" -}}
{{- default (ternary "kube-dns" .Chart.Name .Values.isClusterService) .Values.k8sAppLabelOverride -}}
{{- end -}}

{{- define "kdns.selector" -}}
{{- if .Values.isClusterService }}
k8s-app: {{ include "kdns.k8sapp" . }}
{{- end }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/name: {{ .Chart.Name }}
{{- end -}}

{{- define "kdns.labels" -}}
{{ include "kdns.selector" . | trim }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- if .Values.isClusterService }}
kubernetes.io/cluster-service: "true"
kubernetes.io/name: CoreDNS
{{- end }}
{{- with .Values.customLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "kdns.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "kdns.fullname" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end -}}
{{- end -}}

{{- define "kdns.clusterRoleName" -}}
{{- default (include "kdns.fullname" .) .Values.clusterRole.nameOverride -}}
{{- end -}}

{{- define "kdns.autoscaler.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/name: {{ .Chart.Name }}-autoscaler
{{- end -}}

{{- define "kdns.autoscaler.labels" -}}
{{ include "kdns.autoscaler.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.customLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The ports of all servers: UDP and TCP, each once. */}}
{{- define "kdns.ports" -}}
{{- $seen := dict -}}
{{- range .servers -}}
{{- $port := .port | toString -}}
{{- $known := default (dict "udp" false "tcp" false "servicePort" (default .port .servicePort) "nodePort" .nodePort "hostPort" .hostPort) (get $seen $port) -}}
{{- range .zones -}}
{{- if has (default "" .scheme) (list "tls://" "grpc://" "https://") -}}
{{- $_ := set $known "tcp" true -}}
{{- else -}}
{{- $_ := set $known "udp" true -}}
{{- if (default false .use_tcp) -}}{{- $_ := set $known "tcp" true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $seen $port $known -}}
{{- end -}}
{{- range $port, $known := $seen -}}
{{- $base := ternary "" (printf "-%s" $port) (eq $port "53") -}}
{{- if $known.udp }}
- {port: {{ $known.servicePort }}, target: {{ $port }}, protocol: UDP, name: dns{{ $base }}, nodePort: {{ default 0 $known.nodePort }}, hostPort: {{ default 0 $known.hostPort }}}
{{- end }}
{{- if $known.tcp }}
- {port: {{ $known.servicePort }}, target: {{ $port }}, protocol: TCP, name: dns-tcp{{ $base }}, nodePort: {{ default 0 $known.nodePort }}, hostPort: {{ default 0 $known.hostPort }}}
{{- end }}
{{- end -}}
{{- end -}}

{{/* The number of worker processes (plugin multisocket); 0 where it is left to the node. */}}
{{- define "kdns.workers" -}}
{{- $most := 1 -}}
{{- range .Values.servers -}}{{- range .plugins -}}
{{- if eq .name "multisocket" -}}
{{- if not .parameters -}}{{- $most = 0 -}}{{- else if $most -}}{{- $most = max $most (int .parameters) -}}{{- end -}}
{{- end -}}
{{- end -}}{{- end -}}
{{- $most -}}
{{- end -}}

{{/* Memory as it is set, or as so many workers need it: a process of 10,000 Services with 150,000 endpoints has 64 MiB of its own,
     two workers and what watches over them 129 MiB, each more 42 MiB. */}}
{{- define "kdns.resources" -}}
{{- $found := deepCopy .Values.resources -}}
{{- $workers := include "kdns.workers" . | int -}}
{{- $limit := dig "limits" "memory" "" $found -}}
{{- if and (eq $workers 0) (eq $limit "170Mi") -}}
{{- fail "servers: multisocket without a number makes as many workers as its node has processors, and resources.limits.memory is for one process. Give it a number, or set the limit." -}}
{{- end -}}
{{- if and (gt $workers 1) (eq $limit "170Mi") -}}{{- $_ := set $found.limits "memory" (printf "%dMi" (add 170 (mul 60 $workers))) -}}{{- end -}}
{{- if and (gt $workers 1) (eq (dig "requests" "memory" "" $found) "70Mi") -}}{{- $_ := set $found.requests "memory" (printf "%dMi" (add 70 (mul 30 $workers))) -}}{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{/* Refuses values with which a plugin could not write where it must, and an end that comes before the last query is answered. */}}
{{- define "kdns.check" -}}
{{- $taken := list "Corefile" -}}
{{- range .Values.zoneFiles -}}{{- $taken = append $taken .filename -}}{{- end -}}
{{- range $name, $_ := .Values.pluginFiles -}}
{{- if not (regexMatch "^[-_A-Za-z0-9][-._A-Za-z0-9]*$" $name) -}}
{{- fail (printf "pluginFiles: %q cannot be a key of the ConfigMap: use letters, digits, -, _ and . alone, and no . to begin with." $name) -}}
{{- end -}}
{{- if has $name $taken -}}
{{- fail (printf "pluginFiles: %s is already the Corefile or one of zoneFiles: give the file another name." $name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.servers -}}{{- range .plugins -}}
{{- $block := default "" .configBlock -}}
{{- $writes := or (has .name (list "sign" "dynupdate")) (and (eq .name "secondary") (regexMatch "(?m)^\\s*directory\\s" $block)) (and (eq .name "kubernetes") (regexMatch "(?m)^\\s*snapshot\\s" $block)) -}}
{{- if and $writes (not $.Values.writable.enabled) (not $.Values.extraVolumeMounts) -}}
{{- fail (printf "servers: %s writes to a folder, and everything in the container is read-only: set writable.enabled." .name) -}}
{{- end -}}
{{- if and (eq .name "dynupdate") $.Values.writable.enabled (not $.Values.writable.existingClaim) (not $.Values.extraVolumeMounts) -}}
{{- fail "servers: dynupdate keeps what clients changed in its folder: set writable.existingClaim. Without it that is lost with the Pod." -}}
{{- end -}}
{{- if and (eq .name "dynupdate") (or (ne (int $.Values.replicaCount) 1) (ne ($.Values.rollingUpdate.maxSurge | toString) "0") $.Values.hpa.enabled $.Values.autoscaler.enabled) -}}
{{- fail "servers: one server at a time uses dynupdate's folder: set replicaCount to 1 and rollingUpdate.maxSurge to 0, without hpa and autoscaler." -}}
{{- end -}}
{{- if eq .name "health" -}}
{{- $lame := regexFind "(?m)^\\s*lameduck\\s+[0-9]+s\\s*$" $block | regexFind "[0-9]+" | default "0" | int -}}
{{- if and $lame (lt (int $.Values.terminationGracePeriodSeconds) (add $lame 5 | int)) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d s are less than health's lameduck of %d s and the 5 s that the last queries may take." (int $.Values.terminationGracePeriodSeconds) $lame) -}}
{{- end -}}
{{- end -}}
{{- end -}}{{- end -}}
{{- end -}}
