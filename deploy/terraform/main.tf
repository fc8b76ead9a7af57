# Installs the chart beside this module by Helm, as `helm install weft` does. What it removes at a destroy, and what it keeps: docs/install.md.

locals {
  # What is null is as the chart has it.
  image   = { for name, value in { registry = var.image_registry, tag = var.image_tag } : name => value if value != null }
  control = { for name, value in { replicas = var.replicas, tokenIssuer = var.token_issuer } : name => value if value != null }
  chosen = {
    image       = local.image
    control     = local.control
    trustDomain = var.trust_domain
    capture     = { mode = var.capture_mode }
  }
}

resource "helm_release" "weft" {
  name             = "weft"
  namespace        = "weft-system"
  create_namespace = var.create_namespace
  chart            = "${path.module}/../chart"
  wait             = var.wait
  timeout          = var.timeout
  # Never: it would put the chart's empty Secret in the place of the CA.
  force_update = false

  values = concat(
    var.ha ? [file("${path.module}/../chart/values-ha.yaml")] : [],
    [yamlencode(local.chosen)],
    var.values,
  )
}
