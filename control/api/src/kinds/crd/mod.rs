//! The CustomResourceDefinitions of our own kinds, as `deploy/crds/weft.dev.yaml` has them.
//!
//! `kubectl get` shows what became of an object (`control/src/status`). The API server refuses what [`spec`] can say: types, bounds, words. What a schema cannot say
//! is judged by control, and told in the object's status: so an object with a fault can be stored, and then its last good version stays in force, or its targets are
//! closed (`control/src/sources/kubernetes`).

mod spec;

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
        - {{name: Programmed, type: string, jsonPath: '.status.conditions[?(@.type==\"weft.dev/Programmed\")].status'}}
        - {{name: Proxies, type: string, jsonPath: '.status.conditions[?(@.type==\"weft.dev/Programmed\")].message'}}
        - {{name: Age, type: date, jsonPath: .metadata.creationTimestamp}}
      schema:
        openAPIV3Schema:
          type: object
          required: [spec]
          properties:
            spec:
{}{STATUS}---
",
            indented(&spec::schema(kind))
        );
    }
    text
}

/// Where the schema of a `spec` stands in its definition.
fn indented(schema: &str) -> String {
    schema.lines().flat_map(|row| ["              ", row, "\n"]).collect()
}

/// What a `status` may hold: conditions as Gateway API's kinds have them. Who applies one leaves those of other types alone.
const STATUS: &str = "            \
            status:
              type: object
              properties:
                conditions:
                  type: array
                  maxItems: 8
                  x-kubernetes-list-type: map
                  x-kubernetes-list-map-keys: [type]
                  items:
                    type: object
                    required: [lastTransitionTime, message, reason, status, type]
                    properties:
                      type:
                        type: string
                        maxLength: 316
                        pattern: '^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$'
                      status: {type: string, enum: ['True', 'False', Unknown]}
                      observedGeneration: {type: integer, format: int64, minimum: 0}
                      lastTransitionTime: {type: string, format: date-time}
                      reason: {type: string, minLength: 1, maxLength: 1024, pattern: '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'}
                      message: {type: string, maxLength: 32768}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_is_yaml_and_says_what_a_condition_is() {
        let text = definitions();
        let documents = crate::kinds::documents(&text);
        assert_eq!(documents.len(), Kind::ALL.into_iter().filter(|kind| kind.is_policy()).count());
        for document in documents {
            let node = crate::kinds::parse(document).unwrap();
            let version = &node.get("spec").unwrap().get("versions").unwrap().elements()[0];
            let path =
                ["schema", "openAPIV3Schema", "properties", "status", "properties", "conditions", "items", "required"];
            let required = path.iter().fold(version, |node, key| node.get(key).unwrap());
            assert_eq!(required.elements().len(), 5);
        }
    }

    #[test]
    fn the_files_have_what_the_kinds_are() {
        let of_chart = include_str!("../../../../../deploy/chart/files/crds.yaml");
        let text = definitions();
        for (file, has) in [
            ("crds/weft.dev.yaml", include_str!("../../../../../deploy/crds/weft.dev.yaml")),
            ("chart/files/crds.yaml", of_chart),
        ] {
            assert_eq!(has, text, "write deploy/{file} anew: weft crds > deploy/{file}");
        }
    }
}
