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
