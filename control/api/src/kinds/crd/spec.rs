//! What the `spec` of each of our kinds may hold, as the API server checks it: types, bounds, and in CEL what a type cannot say.
//!
//! Invariants
//! - Nothing that control takes is refused here: control says the rest, on the object's status.
//! - No field is dropped: each object keeps what it does not know (`x-kubernetes-preserve-unknown-fields`), for control to refuse it by name, with a
//!   suggestion. Dropping `identites:` would leave an entry that names nobody.
//! - What is written and empty arrives so (`nullable`): the API server would take `from:` with nothing behind it away, and an absent `from` is anybody.
//! - The fields are those of [`policy`](super::super::policy): a test asks serde.

use super::super::meta::Kind;

/// The schema of a kind's `spec`, as YAML that begins in the first column.
pub(super) fn schema(kind: Kind) -> String {
    let own = match kind {
        Kind::AuthorizationPolicy => AUTHORIZATION,
        Kind::RateLimitPolicy => RATE_LIMIT,
        _ => "",
    };
    own.replace("TARGET_REFS", TARGET_REFS.trim_end())
}

const TARGET_REFS: &str = "  targetRefs:
    description: What it covers, in its own namespace - Services, or the Namespace itself.
    type: array
    minItems: 1
    maxItems: 16
    items:
      type: object
      x-kubernetes-preserve-unknown-fields: true
      required: [kind, name]
      properties:
        group: {description: 'Empty: both kinds are of the core group.', type: string, nullable: true, enum: ['', core, null]}
        kind: {type: string, enum: [Service, Namespace]}
        name: {type: string, minLength: 1, maxLength: 253, pattern: '^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'}
        sectionName: {description: Not supported yet; refused by control., type: string, nullable: true}
";

const AUTHORIZATION: &str = "\
type: object
x-kubernetes-preserve-unknown-fields: true
required: [action, targetRefs]
properties:
TARGET_REFS
  action:
    description: 'Allow: what no Allow policy of a target matches is denied. Deny: what it matches is refused, whatever others allow.'
    type: string
    enum: [Allow, Deny]
  rules:
    description: Any of these; none matches nothing.
    type: array
    nullable: true
    maxItems: 1024
    items:
      type: object
      x-kubernetes-preserve-unknown-fields: true
      properties:
        from:
          description: Who, any of these; left out, anybody.
          type: array
          nullable: true
          minItems: 1
          maxItems: 256
          items:
            type: object
            x-kubernetes-preserve-unknown-fields: true
            properties:
              identities:
                description: NAMESPACE/SERVICE-ACCOUNT, NAMESPACE/*, a SPIFFE ID, or the beginning of one and *.
                type: array
                nullable: true
                minItems: 1
                maxItems: 256
                items: {type: string, minLength: 1, maxLength: 2048, pattern: '^[^*]*[*]?$'}
              namespaces:
                description: Namespaces; * at the end matches any rest.
                type: array
                nullable: true
                minItems: 1
                maxItems: 256
                items: {type: string, minLength: 1, maxLength: 253, pattern: '^[-a-z0-9.]*[*]?$'}
        to:
          description: What, any of these; left out, anything.
          type: array
          nullable: true
          minItems: 1
          maxItems: 256
          items:
            type: object
            x-kubernetes-preserve-unknown-fields: true
            properties:
              methods:
                description: HTTP methods.
                type: array
                nullable: true
                minItems: 1
                maxItems: 256
                items: {type: string, minLength: 1, maxLength: 1024}
              paths:
                description: Paths; * at the end matches any rest.
                type: array
                nullable: true
                minItems: 1
                maxItems: 256
                items: {type: string, minLength: 1, maxLength: 1025, pattern: '^[^*]*[*]?$'}
";

const RATE_LIMIT: &str = "\
type: object
x-kubernetes-preserve-unknown-fields: true
required: [limits, targetRefs]
properties:
TARGET_REFS
  limits:
    description: All of these count.
    type: array
    minItems: 1
    maxItems: 64
    x-kubernetes-validations:
      - rule: self.all(one, !has(one.name) || self.exists_one(other, has(other.name) && other.name == one.name))
        message: two limits have the same name
    items:
      type: object
      x-kubernetes-preserve-unknown-fields: true
      required: [per, requests]
      properties:
        name:
          description: Shown in the RateLimit header fields. Default - the policy's name, and a number if it has several.
          type: string
          nullable: true
          minLength: 1
          maxLength: 253
          pattern: '^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'
        requests: {description: So many in each `per`., type: integer, format: int64, minimum: 1, maximum: 1000000000}
        per:
          description: A duration such as 10s, 500ms or 1m30s.
          type: string
          maxLength: 32
          pattern: '^([0-9]{1,5}(h|m|s|ms)){1,4}$'
          x-kubernetes-validations:
            - rule: self.matches('[1-9]')
              message: '`per` must be longer than nothing'
        burst: {description: So many at once; default `requests`., type: integer, format: int64, nullable: true, minimum: 1, maximum: 1000000000}
        key:
          description: 'What shares one allowance. Service: all clients together. ClientIdentity: each has its own.'
          type: string
          nullable: true
          enum: [Service, ClientIdentity, null]
        match:
          description: Any of these; none means every request.
          type: array
          nullable: true
          maxItems: 64
          items:
            type: object
            x-kubernetes-preserve-unknown-fields: true
            properties:
              path:
                type: object
                nullable: true
                x-kubernetes-preserve-unknown-fields: true
                properties:
                  type: {description: Default PathPrefix., type: string, nullable: true, enum: [Exact, PathPrefix, RegularExpression, null]}
                  value: {type: string, nullable: true, maxLength: 16384}
                x-kubernetes-validations:
                  - rule: '!has(self.value) || self.value.startsWith(\"/\") || (has(self.type) && self.type == \"RegularExpression\")'
                    message: 'a path must start with `/`'
              method: {type: string, nullable: true, minLength: 1, maxLength: 1024}
              headers:
                type: array
                nullable: true
                maxItems: 16
                items:
                  type: object
                  x-kubernetes-preserve-unknown-fields: true
                  required: [name, value]
                  properties:
                    type: {description: Default Exact., type: string, nullable: true, enum: [Exact, RegularExpression, null]}
                    name: {type: string, minLength: 1, maxLength: 256}
                    value: {type: string, maxLength: 16384}
";

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::super::super::gateway::{NameValueMatch, PathMatch};
    use super::super::super::policy::{
        AuthorizationPolicySpec, AuthorizationRule, From, Limit, LimitMatch, RateLimitPolicySpec, TargetRef, To,
    };
    use super::super::super::{Node, documents, parse};
    use super::*;

    /// The fields that serde knows of a type: it lists them when it is given another one.
    fn fields<T: DeserializeOwned>() -> Vec<String> {
        let Err(error) = serde_json::from_value::<T>(serde_json::json!({"zzzzzz": 1})) else { panic!("taken") };
        let said = error.to_string();
        let listed = said.split("expected ").nth(1).unwrap_or_else(|| panic!("{said}"));
        let mut found: Vec<String> = listed.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        found.sort();
        found
    }

    /// The fields of an object in a schema, and whether it keeps others.
    fn properties(schema: &Node, path: &[&str]) -> (Vec<String>, bool) {
        let object = path.iter().fold(schema, |node, key| match *key {
            "[]" => node.get("items").unwrap(),
            key => node.get("properties").unwrap().get(key).unwrap(),
        });
        let listed = object.get("properties").unwrap().entries();
        let mut names: Vec<String> = listed.iter().map(|entry| entry.key.clone()).collect();
        names.sort();
        (names, object.get("x-kubernetes-preserve-unknown-fields").is_some())
    }

    #[test]
    fn the_fields_are_those_that_are_read_and_none_is_dropped() {
        let read = |kind| parse(documents(&schema(kind))[0]).unwrap();
        let (authorization, limits) = (read(Kind::AuthorizationPolicy), read(Kind::RateLimitPolicy));
        for (schema, path, want) in [
            (&authorization, "", fields::<AuthorizationPolicySpec>()),
            (&authorization, "targetRefs []", fields::<TargetRef>()),
            (&authorization, "rules []", fields::<AuthorizationRule>()),
            (&authorization, "rules [] from []", fields::<From>()),
            (&authorization, "rules [] to []", fields::<To>()),
            (&limits, "", fields::<RateLimitPolicySpec>()),
            (&limits, "targetRefs []", fields::<TargetRef>()),
            (&limits, "limits []", fields::<Limit>()),
            (&limits, "limits [] match []", fields::<LimitMatch>()),
            (&limits, "limits [] match [] path", fields::<PathMatch>()),
            (&limits, "limits [] match [] headers []", fields::<NameValueMatch>()),
        ] {
            let path: Vec<&str> = path.split_whitespace().collect();
            assert_eq!(properties(schema, &path), (want, true), "{path:?}");
        }
    }
}
