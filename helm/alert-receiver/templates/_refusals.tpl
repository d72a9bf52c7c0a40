{{/*
Renders nothing, or ends with every reason why these values are unsafe, each with its cure.
*/}}
{{- define "alert-receiver.refuse" -}}
{{- $wrong := list -}}
{{- with .Values -}}
{{- if not .database.existingSecret -}}
  {{- if gt (int .replicaCount) 1 -}}
    {{- $wrong = append $wrong (printf "replicaCount: %d pods cannot share one SQLite journal; keep 1, or put the journal into PostgreSQL with database.existingSecret" (int .replicaCount)) -}}
  {{- end -}}
  {{- if gt (int .worker.replicaCount) 1 -}}
    {{- $wrong = append $wrong "worker.replicaCount: SQLite has no workers of their own; keep 1, or put the journal into PostgreSQL with database.existingSecret" -}}
  {{- end -}}
  {{- if and .persistence.enabled (has "ReadWriteMany" .persistence.accessModes) -}}
    {{- $wrong = append $wrong "persistence.accessModes: what is ReadWriteMany is a network file system, on which SQLite is not safe; use ReadWriteOnce on a block device, or PostgreSQL" -}}
  {{- end -}}
  {{- if and .persistence.enabled (regexMatch "(?i)(^|[^a-z])(efs|nfs)([^a-z]|$)" .persistence.storageClass) -}}
    {{- $wrong = append $wrong (printf "persistence.storageClass: %s is a network file system by its name, on which SQLite is not safe; use a block device, or PostgreSQL" .persistence.storageClass) -}}
  {{- end -}}
{{- end -}}
{{- if not .auth.none -}}
  {{- if not (or .auth.existingSecret .auth.generate) -}}
    {{- $wrong = append $wrong "auth: there are no credentials; set auth.existingSecret, or auth.generate, or say with auth.none that something else protects the receiver" -}}
  {{- end -}}
  {{- if not (or .auth.keys.submitToken .auth.keys.submitBasicAuth .tls.clientCertificates) -}}
    {{- $wrong = append $wrong "auth.keys: Alertmanager has no credentials; set submitToken, submitBasicAuth, or tls.clientCertificates" -}}
  {{- end -}}
  {{- if and (not .auth.existingSecret) (or .auth.keys.submitBasicAuth .auth.keys.readBasicAuth .auth.keys.operateBasicAuth) -}}
    {{- $wrong = append $wrong "auth.keys: only tokens are generated; basic auth needs auth.existingSecret" -}}
  {{- end -}}
  {{- $generated := compact (list .auth.keys.submitToken .auth.keys.readToken .auth.keys.operateToken) -}}
  {{- if and (not .auth.existingSecret) (ne (len $generated) (len (uniq $generated))) -}}
    {{- $wrong = append $wrong "auth.keys: two of the tokens have one key, and would be good for what both are; give each a key" -}}
  {{- end -}}
  {{- if and .alertmanagerConfig.enabled .auth.keys.submitBasicAuth (not .auth.keys.submitToken) -}}
    {{- $wrong = append $wrong "alertmanagerConfig: routes with a token, not with a login; set auth.keys.submitToken" -}}
  {{- end -}}
  {{- if and .serviceMonitor.enabled (not (or .openMetrics .auth.keys.readToken)) -}}
    {{- $wrong = append $wrong "serviceMonitor: Prometheus has no token to read with; set auth.keys.readToken or openMetrics" -}}
  {{- end -}}
{{- end -}}
{{- if and .tls.clientCertificates (not .tls.existingSecret) -}}
  {{- $wrong = append $wrong "tls.clientCertificates: needs tls.existingSecret" -}}
{{- end -}}
{{- if and .tls.clientCertificates .auth.none -}}
  {{- $wrong = append $wrong "auth.none: client certificates are credentials, and would close the page and the metrics to all; keep one of auth.none and tls.clientCertificates" -}}
{{- end -}}
{{- if and .tls.clientCertificates .alertmanagerConfig.enabled (not (and .alertmanagerConfig.tlsConfig.cert .alertmanagerConfig.tlsConfig.keySecret)) -}}
  {{- $wrong = append $wrong "alertmanagerConfig: Alertmanager has no client certificate to show; set cert, keySecret and ca in alertmanagerConfig.tlsConfig" -}}
{{- end -}}
{{- $sources := list -}}
{{- range $name := list "files" "existingConfigMap" "initContainer" "imageVolume" -}}
  {{- if index $.Values.plugins $name -}}
    {{- $sources = append $sources $name -}}
  {{- end -}}
{{- end -}}
{{- if gt (len $sources) 1 -}}
  {{- $wrong = append $wrong (printf "plugins: there is one directory of plugins; keep one of %s" (join ", " $sources)) -}}
{{- end -}}
{{- if and .plugins.imageVolume (semverCompare "<1.33.0-0" $.Capabilities.KubeVersion.Version) -}}
  {{- $wrong = append $wrong (printf "plugins.imageVolume: Kubernetes %s has no image volumes; use plugins.initContainer" $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}
{{- $wrong = concat $wrong (include "alert-receiver.wrongSettings" . | fromJsonArray) (include "alert-receiver.wrongThresholds" . | fromJsonArray) -}}
{{- if $wrong -}}
  {{- fail (printf "\n\nthese values are refused:\n- %s\n" (join "\n- " $wrong)) -}}
{{- end -}}
{{- end -}}

{{/* Of what is set twice, the last would win without a word. */}}
{{- define "alert-receiver.wrongSettings" -}}
{{- $wrong := list -}}
{{- $set := list "RECEIVER_WORKER_METRICS_BIND" -}}
{{- range include "alert-receiver.ownEnv" . | fromYamlArray -}}
  {{- $set = append $set .name -}}
{{- end -}}
{{- range .Values.extraEnv -}}
  {{- if hasKey $.Values.settings .name -}}
    {{- $wrong = append $wrong (printf "extraEnv: %s stands in settings, too; keep one" .name) -}}
  {{- else if has .name $set -}}
    {{- $wrong = append $wrong (printf "extraEnv: %s is set already, by the chart or twice; there are values for it" .name) -}}
  {{- end -}}
  {{- $set = append $set .name -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}
