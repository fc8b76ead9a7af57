terraform {
  required_version = ">= 1.5"

  required_providers {
    # Of 1.x, 2.x and 3.x only what all of them have is used.
    helm = {
      source  = "hashicorp/helm"
      version = ">= 1.3.2, < 4.0.0"
    }
  }
}
