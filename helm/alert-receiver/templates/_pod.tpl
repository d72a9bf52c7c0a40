{{/*
The environment of the receiver's containers: what the chart decides, then what the values say.
*/}}
{{- define "alert-receiver.env" -}}
{{ include "alert-receiver.ownEnv" . }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* All of it but `extraEnv`. */}}
{{- define "alert-receiver.ownEnv" -}}
- {name: RECEIVER_BIND, value: "0.0.0.0:8080"}
- {name: RECEIVER_GRACE_PERIOD, value: {{ printf "%ds" (int .Values.gracePeriodSeconds) | quote }}}
{{- if include "alert-receiver.isSplit" . }}
- {name: RECEIVER_DATABASE_URL_FILE, value: /run/alert-receiver/database/url}
{{- else }}
- {name: RECEIVER_DATA_DIR, value: /data}
{{- end }}
{{- if .Values.auth.none }}
- {name: RECEIVER_AUTH, value: none}
{{- else }}
{{- $names := dict "submitToken" "SUBMIT_TOKEN" "readToken" "READ_TOKEN" "operateToken" "OPERATE_TOKEN" "submitBasicAuth" "SUBMIT_BASIC_AUTH" "readBasicAuth" "READ_BASIC_AUTH" "operateBasicAuth" "OPERATE_BASIC_AUTH" }}
{{- range $key, $name := $names }}
{{- with index $.Values.auth.keys $key }}
- {name: RECEIVER_{{ $name }}_FILE, value: {{ printf "/run/alert-receiver/credentials/%s" . | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.openMetrics }}
- {name: RECEIVER_METRICS_OPEN, value: "true"}
{{- end }}
{{- if .Values.tls.existingSecret }}
- {name: RECEIVER_TLS_CERT, value: /run/alert-receiver/tls/tls.crt}
- {name: RECEIVER_TLS_KEY, value: /run/alert-receiver/tls/tls.key}
{{- if .Values.tls.clientCertificates }}
- {name: RECEIVER_TLS_CLIENT_CA, value: /run/alert-receiver/tls/ca.crt}
{{- end }}
{{- end }}
{{- with .Values.actionPlugin }}
- {name: ACTION_PLUGIN, value: {{ . | quote }}}
{{- end }}
{{- if include "alert-receiver.hasPlugins" . }}
- {name: PLUGIN_DIR, value: /plugins}
{{- end }}
{{- range $action, $policy := .Values.policies }}
{{- range $key, $value := $policy }}
- {name: {{ printf "RECEIVER_ACTION_%s_%s" $action $key | upper }}, value: {{ include "alert-receiver.verbatim" $value }}}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ include "alert-receiver.verbatim" $value }}}
{{- end }}
{{- end -}}

{{/* A setting's text as Kubernetes must be told it, which puts variables for $(…) and one $ for two. */}}
{{- define "alert-receiver.verbatim" -}}
{{- include "alert-receiver.text" . | replace "$" "$$" | quote -}}
{{- end -}}

{{/* A value as a setting's text: Go would write 1000000 as 1e+06, and a list in brackets. */}}
{{- define "alert-receiver.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}{{ else if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{- define "alert-receiver.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if include "alert-receiver.isSplit" . }}
- {name: database, mountPath: /run/alert-receiver/database, readOnly: true}
{{- else }}
- {name: data, mountPath: /data}
{{- end }}
{{- if not .Values.auth.none }}
- {name: credentials, mountPath: /run/alert-receiver/credentials, readOnly: true}
{{- end }}
{{- if .Values.tls.existingSecret }}
- {name: tls, mountPath: /run/alert-receiver/tls, readOnly: true}
{{- end }}
{{- if include "alert-receiver.hasPlugins" . }}
- {name: plugins, mountPath: /plugins, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "alert-receiver.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmpSize }}}
{{- if include "alert-receiver.isSplit" . }}
- name: database
  secret:
    secretName: {{ .Values.database.existingSecret | quote }}
    defaultMode: 0440
    items: [{key: {{ .Values.database.existingSecretKey | quote }}, path: url}]
{{- else }}
- name: data
  {{- if .Values.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-data" (include "alert-receiver.fullname" .)) .Values.persistence.existingClaim | quote }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
{{- if not .Values.auth.none }}
- name: credentials
  secret: {secretName: {{ include "alert-receiver.credentials" . | quote }}, defaultMode: 0440}
{{- end }}
{{- with .Values.tls.existingSecret }}
- name: tls
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- with .Values.plugins }}
{{- if or .files .existingConfigMap }}
- name: plugins
  configMap: {name: {{ include "alert-receiver.pluginConfigMap" $ | quote }}}
{{- else if .initContainer }}
- name: plugins
  emptyDir: {}
{{- else if .imageVolume }}
- name: plugins
  image: {{ toJson .imageVolume }}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
The pod template; takes `root`, `role` (serve, web or worker) and `resources`.
*/}}
{{- define "alert-receiver.pod" -}}
{{- $serves := ne .role "worker" -}}
{{- $resources := .resources -}}
{{- $role := .role -}}
{{- $component := ternary "web" "worker" $serves -}}
{{- with .root -}}
metadata:
  labels:
    {{- include "alert-receiver.labels" . | nindent 4 }}
    app.kubernetes.io/component: {{ $component }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: receiver
    {{- with .Values.plugins.files }}
    # Plugins are read once: other files, other pods.
    checksum/plugins: {{ toJson . | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "alert-receiver.serviceAccount" . | quote }}
  # The receiver never talks to Kubernetes. IRSA and Pod Identity bring tokens of their own.
  automountServiceAccountToken: false
  # No RECEIVER_… variables for services that happen to have such a name.
  enableServiceLinks: false
  # preStop, the drain, five seconds in which what did not end is killed, and five to spare.
  terminationGracePeriodSeconds: {{ add .Values.gracePeriodSeconds .Values.preStopSeconds 10 }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- if or .Values.plugins.initContainer .Values.initContainers }}
  initContainers:
    {{- with .Values.plugins.initContainer }}
    - name: plugins
      image: {{ .image | quote }}
      {{- with .command }}
      command: {{ toJson . }}
      {{- end }}
      {{- with .args }}
      args: {{ toJson . }}
      {{- end }}
      securityContext:
        {{- toYaml $.root.Values.securityContext | nindent 8 }}
      volumeMounts:
        - {name: plugins, mountPath: /plugins}
    {{- end }}
    {{- with .Values.initContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: receiver
      image: {{ include "alert-receiver.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [{{ $role }}]
      env:
        {{- include "alert-receiver.env" . | nindent 8 }}
        {{- if and (not $serves) (include "alert-receiver.hasMetrics" .) }}
        - {name: RECEIVER_WORKER_METRICS_BIND, value: "0.0.0.0:8080"}
        {{- end }}
      {{- with .Values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if or $serves (include "alert-receiver.hasMetrics" .) }}
      ports:
        - {name: http, containerPort: 8080}
      {{- end }}
      {{- if $serves }}
      startupProbe:
        httpGet: {path: /-/healthy, port: http, scheme: {{ include "alert-receiver.scheme" . | upper }}}
        periodSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /-/healthy, port: http, scheme: {{ include "alert-receiver.scheme" . | upper }}}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /-/ready, port: http, scheme: {{ include "alert-receiver.scheme" . | upper }}}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      lifecycle:
        preStop:
          exec: {command: [sleep, {{ int .Values.preStopSeconds | quote }}]}
      {{- end }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      resources:
        {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        {{- include "alert-receiver.mounts" . | nindent 8 }}
    {{- with .Values.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "alert-receiver.volumes" . | nindent 4 }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if .Values.topologySpreadConstraints }}
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "alert-receiver.selectorLabels" $.root | nindent 10 }}
          app.kubernetes.io/component: {{ $component }}
    {{- end }}
    {{- end }}
{{- end }}
{{- end -}}
