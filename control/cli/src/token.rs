//! `weft token`: a join token, signed by the CA's key.

use std::time::SystemTime;

use weft_certs::token::Uses;
use weft_engine::identity::Identity;

use crate::args::Token;
use crate::exit::{Exit, Failure};
use crate::output;

/// Reads `NAMESPACE/SERVICE-ACCOUNT` or a whole SPIFFE ID.
///
/// # Errors
/// Neither of them.
pub fn identity(text: &str, trust_domain: &str) -> Result<Identity, Failure> {
    if text.starts_with("spiffe://") {
        return text.parse().map_err(|error: weft_engine::identity::NotAnIdentity| Failure::input(error.to_string()));
    }
    let wrong =
        || Failure::input(format!("`{text}` is no identity: write NAMESPACE/SERVICE-ACCOUNT, or a whole SPIFFE ID"));
    let (namespace, account) = text.split_once('/').ok_or_else(wrong)?;
    Identity::new(trust_domain, namespace, account).map_err(|_| wrong())
}

/// Prints a token.
pub fn run(args: &Token) -> Result<Exit, Failure> {
    let identity = identity(&args.identity, &args.trust_domain)?;
    let uses = if args.reusable { Uses::Many } else { Uses::Once };
    let token = weft_certs::token::sign_for(args.ca.needed()?, &identity, uses, args.ttl, SystemTime::now())
        .map_err(|error| Failure::input(error.to_string()))?;
    if args.json {
        output::json(&serde_json::json!({
            "token": token,
            "identity": identity.to_string(),
            "expires_in_s": args.ttl.as_secs(),
            "reusable": args.reusable,
        }));
    } else {
        output::out(token);
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::identity;

    #[test]
    fn identities_are_short_or_whole() {
        assert_eq!(identity("shop/web", "td").unwrap().to_string(), "spiffe://td/ns/shop/sa/web");
        assert_eq!(
            identity("spiffe://other/ns/shop/sa/web", "td").unwrap().to_string(),
            "spiffe://other/ns/shop/sa/web"
        );
        for bad in ["web", "shop/", "shop/web/more", "spiffe://td/shop/web", "Shop/web"] {
            assert!(identity(bad, "td").is_err(), "{bad}");
        }
    }
}
