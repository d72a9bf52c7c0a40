{{- define "alert-receiver.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of a Service has no dots; that of a release may. */}}
{{- define "alert-receiver.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "alert-receiver.selectorLabels" -}}
app.kubernetes.io/name: {{ include "alert-receiver.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "alert-receiver.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{ include "alert-receiver.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of what kube-prometheus-stack finds by `release`. */}}
{{- define "alert-receiver.monitoringLabels" -}}
{{ include "alert-receiver.labels" . }}
{{- with .Values.prometheusRelease }}
release: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "alert-receiver.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "alert-receiver.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "alert-receiver.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "alert-receiver.credentials" -}}
{{ default (printf "%s-credentials" (include "alert-receiver.fullname" .)) .Values.auth.existingSecret }}
{{- end -}}

{{- define "alert-receiver.pluginConfigMap" -}}
{{ default (printf "%s-plugins" (include "alert-receiver.fullname" .)) .Values.plugins.existingConfigMap }}
{{- end -}}

{{- define "alert-receiver.scheme" -}}
{{ ternary "https" "http" (not (empty .Values.tls.existingSecret)) }}
{{- end -}}

{{- define "alert-receiver.host" -}}
{{ include "alert-receiver.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* Where Alertmanager posts. */}}
{{- define "alert-receiver.webhook" -}}
{{ include "alert-receiver.scheme" . }}://{{ include "alert-receiver.host" . }}:{{ .Values.service.port }}/webhook
{{- with .Values.alertmanagerConfig.source }}?source={{ . | urlquery }}{{ end }}
{{- end -}}

{{/* "true" where accepting and acting are apart, on PostgreSQL; else empty. */}}
{{- define "alert-receiver.isSplit" -}}
{{- if .Values.database.existingSecret }}true{{ end -}}
{{- end -}}

{{/* "true" where plugins come from outside the image; else empty. */}}
{{- define "alert-receiver.hasPlugins" -}}
{{- with .Values.plugins }}{{ if or .files .existingConfigMap .initContainer .imageVolume }}true{{ end }}{{ end -}}
{{- end -}}

{{/* "true" where metrics can be read, by whoever may or by all; else empty. */}}
{{- define "alert-receiver.hasMetrics" -}}
{{- with .Values.auth.keys }}{{ if or $.Values.auth.none $.Values.openMetrics .readToken .readBasicAuth .operateToken .operateBasicAuth }}true{{ end }}{{ end -}}
{{- end -}}
