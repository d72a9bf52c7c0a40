{{/*
Alert rules from `thresholds`, as `receiver/rules.py` makes them: a test compares the two.
*/}}

{{/* The actions that there are, as a JSON array. */}}
{{- define "alert-receiver.presentActions" -}}
{{- $known := concat (list "efs_emergency" "exec_plugin" "file_action" "http_plugin" "log_action") .Values.plugins.actions -}}
{{- range $file, $_ := .Values.plugins.files -}}
  {{- $known = append $known (trimSuffix ".py" $file | replace "-" "_") -}}
{{- end -}}
{{- toJson (sortAlpha $known) -}}
{{- end -}}

{{/* The actions that a threshold can name, as a JSON array. */}}
{{- define "alert-receiver.knownActions" -}}
{{- $known := include "alert-receiver.presentActions" . | fromJsonArray -}}
{{- with .Values.settings.RECEIVER_ACTIONS -}}
  {{- $known = list -}}
  {{- range splitList "," (include "alert-receiver.text" .) -}}
    {{- $known = append $known (trim .) -}}
  {{- end -}}
{{- end -}}
{{- toJson (sortAlpha $known) -}}
{{- end -}}

{{/* Where the rules must carry the release's namespace: that namespace; else empty. */}}
{{- define "alert-receiver.ruleNamespace" -}}
{{- with .Values.alertmanagerConfig -}}
{{- if and .enabled (eq .matcherStrategy "OnNamespace") }}{{ $.Release.Namespace }}{{ end -}}
{{- end -}}
{{- end -}}

{{/*
One level of a threshold, `soft` or `hard`, with what it inherits, as JSON; empty where it is not set.
Takes `root`, `threshold` and `level`.
*/}}
{{- define "alert-receiver.level" -}}
{{- $said := index .threshold .level -}}
{{- if not (kindIs "invalid" $said) -}}
  {{- if not (kindIs "map" $said) -}}
    {{- $said = dict "threshold" $said -}}
  {{- end -}}
  {{- $defaults := dict "for" "0s" "action" .root.Values.actionPlugin "severity" (ternary "critical" "warning" (eq .level "hard")) -}}
  {{- $inherited := pick .threshold "for" "action" "severity" -}}
  {{- toJson (mergeOverwrite $defaults $inherited $said) -}}
{{- end -}}
{{- end -}}

{{/* What is wrong with `thresholds` and other names of actions, as a JSON array. */}}
{{- define "alert-receiver.wrongThresholds" -}}
{{- $wrong := list -}}
{{- $known := include "alert-receiver.knownActions" . | fromJsonArray -}}
{{- $cure := printf "known are %s; others must be listed in plugins.actions or come from plugins.files" (join ", " $known) -}}
{{- $present := include "alert-receiver.presentActions" . | fromJsonArray -}}
{{- range $known -}}
  {{- if and . (not (has . $present)) -}}
    {{- $wrong = append $wrong (printf "settings.RECEIVER_ACTIONS: there is no action %q; list it in plugins.actions, or have it come from plugins.files" .) -}}
  {{- end -}}
{{- end -}}
{{- $named := list -}}
{{- range splitList "," .Values.actionPlugin -}}
  {{- $named = append $named (dict "where" "actionPlugin" "action" (trim .)) -}}
{{- end -}}
{{- range $action, $policy := .Values.policies -}}
  {{- $named = append $named (dict "where" "policies" "action" $action) -}}
  {{- $named = append $named (dict "where" (printf "policies.%s.escalate_to" $action) "action" (default "" $policy.escalate_to)) -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.thresholds -}}
  {{- $threshold := . -}}
  {{- $where := printf "thresholds, %s" .name -}}
  {{- if has .name $names -}}
    {{- $wrong = append $wrong (printf "%s: stands there twice; names must differ" $where) -}}
  {{- end -}}
  {{- $names = append $names .name -}}
  {{- if not (or .metric .expr) -}}
    {{- $wrong = append $wrong (printf "%s: has neither metric nor expr; say what is compared" $where) -}}
  {{- end -}}
  {{- $levels := dict -}}
  {{- range $level := list "soft" "hard" -}}
    {{- with include "alert-receiver.level" (dict "root" $ "threshold" $threshold "level" $level) -}}
      {{- $one := fromJson . -}}
      {{- $_ := set $levels $level $one.threshold -}}
      {{- if not $one.action -}}
        {{- $wrong = append $wrong (printf "%s: %s names no action; set action, or actionPlugin for all" $where $level) -}}
      {{- end -}}
      {{- range splitList "," $one.action -}}
        {{- $named = append $named (dict "where" $where "action" (trim .)) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
  {{- if not $levels -}}
    {{- $wrong = append $wrong (printf "%s: has neither soft nor hard; set a threshold" $where) -}}
  {{- else if eq (len $levels) 2 -}}
    {{- $isUpward := has .operator (list ">" ">=") -}}
    {{- $isDownward := has .operator (list "<" "<=") -}}
    {{- if or (and $isUpward (lt (float64 $levels.hard) (float64 $levels.soft))) (and $isDownward (gt (float64 $levels.hard) (float64 $levels.soft))) -}}
      {{- $wrong = append $wrong (printf "%s: hard (%s) is crossed before soft (%s); exchange them" $where (toJson $levels.hard) (toJson $levels.soft)) -}}
    {{- end -}}
  {{- else -}}
    {{- range $key := list "hardRequiresSoft" "hardUntilSoftEnds" -}}
      {{- if index $threshold $key -}}
        {{- $wrong = append $wrong (printf "%s: %s needs both soft and hard" $where $key) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- range $named -}}
  {{- if and .action (not (has .action $known)) -}}
    {{- $wrong = append $wrong (printf "%s: there is no action %q; %s" .where .action $cure) -}}
  {{- end -}}
{{- end -}}
{{- toJson (uniq $wrong) -}}
{{- end -}}

{{/* The condition of one level; takes `threshold` and `value`. */}}
{{- define "alert-receiver.condition" -}}
{{- $subject := .threshold.metric -}}
{{- $history := printf "%s[%s]" $subject (default "1h" .threshold.lastValueFor) -}}
{{- if .threshold.expr -}}
  {{- /* A comment would take the bracket with it. */ -}}
  {{- $subject = printf "(%s%s)" (trim .threshold.expr) (ternary "\n" "" (contains "#" .threshold.expr)) -}}
  {{- $history = printf "%s[%s:]" $subject (default "1h" .threshold.lastValueFor) -}}
{{- end -}}
{{- $crossed := printf "%s %s" .threshold.operator .value -}}
{{- $missing := default "ignore" .threshold.missing -}}
{{- if eq $missing "zero" -}}
({{ $subject }} or on () vector(0)) {{ $crossed }}
{{- else if eq $missing "breached" -}}
{{ $subject }} {{ $crossed }} or absent({{ $subject }}) * NaN
{{- else if eq $missing "last_value" -}}
last_over_time({{ $history }}) {{ $crossed }}
{{- else -}}
{{ $subject }} {{ $crossed }}
{{- end -}}
{{- end -}}

{{/* The alert rules of `thresholds`, as a JSON array. */}}
{{- define "alert-receiver.thresholdRules" -}}
{{- $root := . -}}
{{- $rules := list -}}
{{- $namespace := include "alert-receiver.ruleNamespace" . -}}
{{- range $threshold := .Values.thresholds -}}
  {{- range $level := list "soft" "hard" -}}
    {{- with include "alert-receiver.level" (dict "root" $root "threshold" $threshold "level" $level) -}}
      {{- $one := fromJson . -}}
      {{- $value := toJson $one.threshold -}}
      {{- $labels := merge (dict "severity" $one.severity "action_plugin" $one.action) (default dict $threshold.labels) -}}
      {{- if $namespace -}}
        {{- $labels = merge (dict "namespace" $namespace "origin_namespace" "{{ $labels.namespace }}") $labels -}}
      {{- end -}}
      {{- $annotations := dict "value" "{{ $value }}" "threshold" (printf "%s %s" $threshold.operator $value) "for" $one.for -}}
      {{- with $threshold.metric -}}
        {{- $_ := set $annotations "metric_name" . -}}
      {{- end -}}
      {{- $annotations = merge $annotations (default dict $threshold.annotations) -}}
      {{- $expr := include "alert-receiver.condition" (dict "threshold" $threshold "value" $value) -}}
      {{- $added := concat (list "alertname" "alertstate" "severity" "action_plugin") (keys (default dict $threshold.labels) | sortAlpha) -}}
      {{- $fires := dict -}}
      {{- range $other := list "Soft" "Hard" -}}
        {{- $alert := printf `ALERTS{alertname="%s%s",alertstate="firing"}` $threshold.name $other -}}
        {{- if $namespace -}}
          {{- /* Where the metric has no namespace, ALERTS shows the template that the label is made from. */ -}}
          {{- $alert = printf `label_replace(%s, "namespace", "$1", "origin_namespace", "(?:[{].*)?(.*)")` $alert -}}
        {{- end -}}
        {{- $_ := set $fires $other (printf "ignoring (%s) %s" (join ", " (ternary (append $added "origin_namespace") $added (ne $namespace ""))) $alert) -}}
      {{- end -}}
      {{- if and (eq $level "hard") $threshold.hardRequiresSoft -}}
        {{- $expr = printf "(%s) and %s" $expr $fires.Soft -}}
      {{- end -}}
      {{- if and (eq $level "hard") $threshold.hardUntilSoftEnds -}}
        {{- $soft := fromJson (include "alert-receiver.level" (dict "root" $root "threshold" $threshold "level" "soft")) -}}
        {{- $softly := include "alert-receiver.condition" (dict "threshold" $threshold "value" (toJson $soft.threshold)) -}}
        {{- $expr = printf "(%s) or (%s) and %s" $expr $softly $fires.Hard -}}
      {{- end -}}
      {{- $rules = append $rules (dict "alert" (printf "%s%s" $threshold.name (title $level)) "expr" $expr "for" $one.for "labels" $labels "annotations" $annotations) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- toJson $rules -}}
{{- end -}}
