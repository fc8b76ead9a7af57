{{- /* A plain subset of what Helm has: `weft install` renders these files too, with few functions (control/cli/src/install/render). */ -}}

{{- define "weft.tag" -}}
{{- .Values.image.tag | default .Chart.AppVersion -}}
{{- end -}}

{{- define "weft.registry" -}}
{{- required "image.registry is needed: where the images are, such as registry.example/weft" .Values.image.registry -}}
{{- end -}}

{{- /* Of every object. */ -}}
{{- define "weft.labels" -}}
app.kubernetes.io/part-of: weft
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "weft.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* What passes restricted Pod Security. */ -}}
{{- define "weft.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* What both webhooks have. */ -}}
{{- define "weft.webhook" -}}
admissionReviewVersions: [v1]
clientConfig:
  service: {name: weft-control, namespace: {{ .Release.Namespace }}, path: /inject, port: 443}
rules:
  - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods], scope: Namespaced}
failurePolicy: {{ .Values.injection.failurePolicy }}
matchPolicy: Equivalent
reinvocationPolicy: IfNeeded
sideEffects: None
timeoutSeconds: {{ .Values.injection.timeoutSeconds }}
{{- end }}

{{- /* Never: what the cluster itself, and control, cannot start without. */ -}}
{{- define "weft.outside" -}}
key: kubernetes.io/metadata.name
operator: NotIn
values: [kube-system, kube-node-lease, kube-public, {{ .Release.Namespace }}]
{{- end }}

{{- /* What control puts into pods. */ -}}
{{- define "weft.injection" -}}
images:
  proxy: {{ printf "%s/weft-proxy:%s" (include "weft.registry" .) (include "weft.tag" .) | quote }}
  capture: {{ printf "%s/weft-capture:%s" (include "weft.registry" .) (include "weft.tag" .) | quote }}
  pullPolicy: {{ .Values.image.pullPolicy }}
  pullSecrets: {{ .Values.image.pullSecrets | toJson }}
control: weft-control.{{ .Release.Namespace }}.svc:15012
trustDomain: {{ .Values.trustDomain | quote }}
rootsConfigMap: weft-roots
audience: weft
capture: {{ .Values.capture.mode }}
sidecar: {{ .Values.injection.sidecar }}
resources: {{ .Values.injection.resources | toJson }}
excludeInboundPorts: {{ .Values.injection.excludeInboundPorts | toJson }}
excludeOutboundPorts: {{ .Values.injection.excludeOutboundPorts | toJson }}
excludeOutboundCidrs: {{ .Values.injection.excludeOutboundCidrs | toJson }}
dns: {{ .Values.injection.dns }}
socketLb: {{ .Values.injection.socketLb }}
{{- end }}
