//! Why a resource is refused.

use crate::wire::v1;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// Why a resource is refused; the codes are stable: they travel in a NACK and stand in metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            /// Every code, in the order of their declaration.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code as it travels.
            pub const fn code(self) -> &'static str {
                match self { $(ErrorCode::$name => $code,)* }
            }
        }
    };
}

codes! {
    /// No type of ours.
    UnknownType = "unknown_type",
    /// Not the protobuf encoding of its type.
    Malformed = "malformed",
    /// An enum value or a variant that this build does not know.
    UnknownValue = "unknown_value",
    /// Requires a feature that this build does not enforce.
    UnsupportedFeature = "unsupported_feature",
    /// A field that must be set is not.
    MissingField = "missing_field",
    /// The name of an object or resource.
    InvalidName = "invalid_name",
    /// An IP address, a range, or a host name.
    InvalidAddress = "invalid_address",
    /// Not a port from 1 to 65535.
    InvalidPort = "invalid_port",
    /// An identity, or a pattern over identities or namespaces.
    InvalidIdentity = "invalid_identity",
    /// A path, or a pattern over paths.
    InvalidPath = "invalid_path",
    /// A method.
    InvalidMethod = "invalid_method",
    /// A header's name or value, or one that nobody may edit.
    InvalidHeader = "invalid_header",
    /// A regular expression.
    InvalidRegex = "invalid_regex",
    /// A number out of its range, or too many of something.
    OutOfRange = "out_of_range",
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

/// One resource is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ResourceError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what, where, what to do.
    pub message: String,
}

impl ResourceError {
    /// An error from its parts.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The same, told of a part of the resource.
    #[must_use]
    pub fn within(self, part: &str) -> Self {
        Self { message: format!("{part}: {}", self.message), ..self }
    }

    /// As it travels in a NACK.
    pub fn to_wire(&self, type_url: &str, name: &str, version: &str) -> v1::ResourceError {
        v1::ResourceError {
            type_url: type_url.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
            code: self.code.code().to_owned(),
            message: self.message.clone(),
        }
    }
}
