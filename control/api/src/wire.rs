//! The generated protobuf messages and gRPC services, one module a package.
//!
//! Nothing outside `convert` and the two ends of the stream should look inside these: the engine has its own types.
#![allow(missing_docs, clippy::pedantic, rust_2018_idioms, unused_qualifications)]

pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
    }
}

pub mod google {
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

pub mod istio {
    pub mod v1 {
        pub mod auth {
            tonic::include_proto!("istio.v1.auth");
        }
    }
}

pub mod spiffe {
    tonic::include_proto!("_");

    impl std::fmt::Debug for X509svid {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("X509svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
        }
    }
}

pub mod weft {
    pub mod replicas {
        pub mod v1 {
            tonic::include_proto!("weft.replicas.v1");
        }
    }
    pub mod v1 {
        tonic::include_proto!("weft.v1");
    }
}

pub use envoy::config::core::v3 as core;
pub use envoy::service::discovery::v3 as discovery;
pub use google::rpc;
pub use istio::v1::auth as ca;
pub use weft::replicas::v1 as replicas;
pub use weft::v1;

impl v1::RouteRule {
    /// Its filters and those of its backends.
    pub fn all_filters(&self) -> impl Iterator<Item = &v1::filter::Filter> {
        let filters = self.filters.iter().chain(self.backends.iter().flat_map(|backend| &backend.filters));
        filters.filter_map(|filter| filter.filter.as_ref())
    }

    /// Names of the services that it refers to, of backends and mirrors.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.references().map(|(service, _)| service)
    }

    /// Those of them that can be used.
    pub fn usable(&self) -> impl Iterator<Item = &str> {
        self.references().filter(|(_, invalid)| invalid.is_empty()).map(|(service, _)| service)
    }

    /// Each with why it cannot be used.
    fn references(&self) -> impl Iterator<Item = (&str, &str)> {
        let mirrors = self.all_filters().filter_map(|filter| match filter {
            v1::filter::Filter::Mirror(mirror) => Some((&*mirror.service, &*mirror.invalid)),
            _ => None,
        });
        self.backends.iter().map(|backend| (&*backend.service, &*backend.invalid)).chain(mirrors)
    }

    /// Says of each reference to a service why it cannot be used; one that is known to be unusable stays so.
    pub fn mark_unusable(&mut self, why: impl Fn(&str) -> Option<String>) {
        let mark = |service: &str, invalid: &mut String| {
            if invalid.is_empty() {
                *invalid = why(service).unwrap_or_default();
            }
        };
        let mirrors = |filters: &mut Vec<v1::Filter>| {
            for filter in filters {
                if let Some(v1::filter::Filter::Mirror(mirror)) = &mut filter.filter {
                    mark(&mirror.service, &mut mirror.invalid);
                }
            }
        };
        mirrors(&mut self.filters);
        for backend in &mut self.backends {
            mark(&backend.service, &mut backend.invalid);
            mirrors(&mut backend.filters);
        }
    }
}
