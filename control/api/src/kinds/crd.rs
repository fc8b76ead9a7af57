//! The CustomResourceDefinitions of our own kinds, as `deploy/crds/weft.dev.yaml` has them.
//!
//! `kubectl get` shows what became of an object (`control/src/status`). What a `spec` may hold is judged by control, with more than a schema can say; the API server only keeps it. So an object with a fault
//! can be stored: its last good version stays in force, or its targets are closed (`control/src/sources/kubernetes`).

use std::fmt::Write as _;

use super::meta::Kind;

/// All of them, as one YAML file.
pub fn definitions() -> String {
    let mut text = String::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_policy()) {
        let (name, plural) = (kind.name(), kind.plural());
        let (group, version) = kind.api_versions()[0].split_once('/').unwrap_or_default();
        let singular = name.to_ascii_lowercase();
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.{group}}}
spec:
  group: {group}
  scope: Namespaced
  names: {{kind: {name}, listKind: {name}List, plural: {plural}, singular: {singular}, categories: [weft]}}
  versions:
    - name: {version}
      served: true
      storage: true
      subresources: {{status: {{}}}}
      additionalPrinterColumns:
        - {{name: Accepted, type: string, jsonPath: '.status.conditions[?(@.type==\"Accepted\")].status'}}
        - {{name: Proxies, type: string, jsonPath: '.status.conditions[?(@.type==\"weft.dev/Programmed\")].message'}}
        - {{name: Age, type: date, jsonPath: .metadata.creationTimestamp}}
      schema:
        openAPIV3Schema:
          type: object
          required: [spec]
          properties:
            spec: {{type: object, x-kubernetes-preserve-unknown-fields: true}}
            status: {{type: object, x-kubernetes-preserve-unknown-fields: true}}
---
"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_what_the_kinds_are() {
        let file = include_str!("../../../../deploy/crds/weft.dev.yaml");
        assert_eq!(file, definitions(), "write deploy/crds/weft.dev.yaml anew");
    }
}
