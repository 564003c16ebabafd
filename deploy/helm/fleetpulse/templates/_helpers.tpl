{{/* Everywhere: a context (root) and the name of a service (service). */}}

{{/* A release may have dots in its name, a Service not. */}}
{{- define "fleetpulse.name" -}}
{{ printf "%s-%s" .root.Release.Name .service | replace "." "-" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "fleetpulse.selector" -}}
app.kubernetes.io/name: fleetpulse-{{ .service }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "fleetpulse.labels" -}}
{{ include "fleetpulse.selector" . }}
app.kubernetes.io/component: {{ .service }}
app.kubernetes.io/part-of: fleetpulse
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "fleetpulse.image" -}}
{{ with .root.Values.images.repository }}{{ . }}/{{ end }}fleetpulse-{{ .service }}:{{ .root.Values.images.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* A pod starts anew when its settings change. */}}
{{- define "fleetpulse.annotations" -}}
checksum/settings: {{ printf "%s %s" (include "fleetpulse.shared" .root) (include "fleetpulse.settings" .) | sha256sum }}
{{- end }}

{{- define "fleetpulse.shared" -}}
FLEETPULSE_LOG_FORMAT: json
FLEETPULSE_KAFKA_BOOTSTRAP: {{ .Values.kafka.bootstrap | quote }}
FLEETPULSE_KAFKA_SECURITY_PROTOCOL: {{ .Values.kafka.securityProtocol | quote }}
FLEETPULSE_KAFKA_SASL_MECHANISM: {{ .Values.kafka.saslMechanism | quote }}
{{- if .Values.kafka.caConfigMap }}
FLEETPULSE_KAFKA_SSL_CA_FILE: /etc/fleetpulse/kafka/ca.crt
{{- end }}
{{- include "fleetpulse.texts" .Values.settings }}
{{- end }}

{{- define "fleetpulse.settings" -}}
{{- if include "fleetpulse.hasMachines" . }}
FLEETPULSE_STATIC_MACHINES_FILE: /etc/fleetpulse/machines/machines.toml
{{- end }}
{{- include "fleetpulse.texts" (index .root.Values .service).settings }}
{{- end }}

{{/* Of a map of values: null takes away one of the chart's own (helm upgrade --reuse-values leaves it there). A number in a
     file of values is a floating one: as text it would be 3.3554432e+07, which no setting takes. */}}
{{- define "fleetpulse.texts" -}}
{{- range $name, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }}: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Settings of all, of the service, then the Secrets: what a later one names counts. */}}
{{- define "fleetpulse.environment" -}}
- configMapRef: {name: {{ .root.Release.Name }}-shared}
- configMapRef: {name: {{ include "fleetpulse.name" . }}}
{{- with .root.Values.secrets.kafka }}
- secretRef: {name: {{ . }}}
{{- end }}
{{- if ne .service "agent" }}
- secretRef: {name: {{ .root.Values.secrets.database }}}
{{- end }}
{{- with index .root.Values.secrets .service }}
- secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "fleetpulse.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Alive when the process answers, whatever is away; ready when it can do its work. */}}
{{- define "fleetpulse.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 2
  failureThreshold: 90
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}

{{/* Control alone installs agents on machines. */}}
{{- define "fleetpulse.hasMachines" -}}
{{- if eq .service "control" }}{{ .root.Values.secrets.machines }}{{ end }}
{{- end }}

{{- define "fleetpulse.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: state, mountPath: /var/lib/fleetpulse}
{{- if .root.Values.kafka.caConfigMap }}
- {name: kafka-ca, mountPath: /etc/fleetpulse/kafka, readOnly: true}
{{- end }}
{{- if include "fleetpulse.hasMachines" . }}
- {name: machines, mountPath: /etc/fleetpulse/machines, readOnly: true}
{{- end }}
{{- end }}

{{- define "fleetpulse.volumes" -}}
- {name: tmp, emptyDir: {sizeLimit: 16Mi}}
{{- if .root.Values.kafka.caConfigMap }}
- {name: kafka-ca, configMap: {name: {{ .root.Values.kafka.caConfigMap }}}}
{{- end }}
{{- if include "fleetpulse.hasMachines" . }}
- {name: machines, secret: {secretName: {{ .root.Values.secrets.machines }}, defaultMode: 0440}}
{{- end }}
{{- end }}
