# What can be chosen. All else by `values`.

variable "image_registry" {
  description = "Where the images are: REGISTRY/weft-control and so on."
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9][a-zA-Z0-9.:/_-]*[a-zA-Z0-9]$", var.image_registry))
    error_message = "Give the registry and path of the images, such as registry.example/weft."
  }
}

variable "image_tag" {
  description = "Their tag; null: the version of the chart."
  type        = string
  default     = null
}

variable "ha" {
  description = "Take the values for production: three replicas, a network policy, the CA and the kinds kept at an uninstallation."
  type        = bool
  default     = false
}

variable "replicas" {
  description = "Replicas of control; null: as the chart has it."
  type        = number
  default     = null

  validation {
    condition     = var.replicas == null ? true : var.replicas >= 1 && var.replicas <= 64 && floor(var.replicas) == var.replicas
    error_message = "Control has 1 to 64 replicas."
  }
}

variable "trust_domain" {
  description = "The name that all identities begin with."
  type        = string
  default     = "cluster.local"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?$", var.trust_domain))
    error_message = "A trust domain has lower-case letters, digits, dots, dashes and underscores."
  }
}

variable "capture_mode" {
  description = "How a pod's connections come to its sidecar: init (an init container with NET_ADMIN) or cni (a plugin on each node)."
  type        = string
  default     = "init"

  validation {
    condition     = contains(["init", "cni"], var.capture_mode)
    error_message = "capture_mode is init or cni."
  }
}

variable "token_issuer" {
  description = "Who issues service-account tokens in this cluster; null: as the chart has it. EKS, GKE and AKS have their own."
  type        = string
  default     = null

  validation {
    condition     = var.token_issuer == null ? true : can(regex("^https?://", var.token_issuer))
    error_message = "token_issuer is a URL."
  }
}

variable "values" {
  description = "Further values of the chart, as documents of YAML; a later one counts for more, and all of them for more than the variables above."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for document in var.values : can(yamldecode(document))])
    error_message = "Each of values is a document of YAML."
  }
}

variable "create_namespace" {
  description = "Make the namespace weft-system."
  type        = bool
  default     = true
}

variable "wait" {
  description = "Wait until control is ready."
  type        = bool
  default     = true
}

variable "timeout" {
  description = "Seconds to wait for."
  type        = number
  default     = 300

  validation {
    condition     = var.timeout >= 1 && var.timeout <= 3600
    error_message = "Wait between 1 and 3600 seconds."
  }
}
