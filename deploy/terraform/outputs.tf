output "namespace" {
  description = "Where Weft is."
  value       = helm_release.weft.namespace
}

output "control" {
  description = "Where sidecars call control."
  value       = "weft-control.${helm_release.weft.namespace}.svc:15012"
}
