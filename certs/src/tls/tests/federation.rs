//! Identities of other trust domains: each leads to its own domain's roots, or nowhere.

use super::*;

const PARTNER: &str = "partner.example";

/// Roots of `own`, and those of the others for their domains.
pub fn roots(own: &Mesh, others: &[&Mesh]) -> Roots {
    let bundle = |mesh: &Mesh| {
        let roots = certificates(mesh.ca.root_pem()).unwrap().iter().map(|root| root.to_vec()).collect::<Vec<_>>();
        (Arc::<str>::from(mesh.ca.trust_domain()), roots)
    };
    let all: Vec<_> = [own].iter().chain(others).map(|mesh| bundle(mesh)).collect();
    Roots::of_domains(own.ca.trust_domain(), all.iter().map(|(domain, roots)| (domain, roots))).unwrap()
}

/// A certificate of this CA in which stands any name.
pub fn claiming(mesh: &Mesh, name: &str) -> Svid {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate().unwrap();
    let chain: Vec<u8> = mesh.ca.sign_for_test(&params, &key).iter().flat_map(|cert| cert.to_vec()).collect();
    Svid::from_der(&key.serialize_der(), &chain).unwrap()
}

/// A client of `to`'s mesh calls a server that believes `by`.
async fn call(client: &Svid, by: &Roots, own: &Mesh) -> Result<Identity, String> {
    let server = server_config(&own.svid("web"), by, ALPN, ClientAuth::Required, own.ca.trust_domain()).unwrap();
    let domain = client.identity().trust_domain.to_string();
    let theirs = Roots::of_domains(
        &domain,
        &BTreeMap::from([
            (Arc::from(&*domain), vec![certificates(own.ca.root_pem()).unwrap()[0].to_vec()]),
            (own.ca.trust_domain().into(), vec![certificates(own.ca.root_pem()).unwrap()[0].to_vec()]),
        ]),
    );
    let client = client_config(Some(client), &theirs.unwrap(), ALPN, &domain).unwrap();
    connect(client, server).await.map(|seen| seen.client.unwrap())
}

#[tokio::test]
async fn a_federated_domain_is_believed_under_its_own_root() {
    let (ours, partner) = (mesh(TD), mesh(PARTNER));
    let web = partner.svid("web");
    let refused = call(&web, ours.ca.roots(), &ours).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    let seen = call(&web, &roots(&ours, &[&partner]), &ours).await.unwrap();
    assert_eq!(seen, partner.identity("web"));
}

#[tokio::test]
async fn no_root_vouches_for_another_domain() {
    let (ours, partner, third) = (mesh(TD), mesh(PARTNER), mesh("third.example"));
    let believed = roots(&ours, &[&partner, &third]);
    for (signer, name) in [
        (&partner, "spiffe://cluster.local/ns/shop/sa/web"),
        (&ours, "spiffe://partner.example/ns/shop/sa/web"),
        (&third, "spiffe://partner.example/ns/shop/sa/web"),
    ] {
        let refused = call(&claiming(signer, name), &believed, &ours).await.unwrap_err();
        assert!(refused.contains("UnknownIssuer"), "{name}: {refused}");
    }
    // Even our own root does not make a domain that nobody knows.
    let stranger = claiming(&ours, "spiffe://nobody.example/ns/shop/sa/web");
    let refused = call(&stranger, &believed, &ours).await.unwrap_err();
    assert!(refused.contains("is not of trust domain cluster.local"), "{refused}");
}

#[tokio::test]
async fn who_is_believed_of_control_is_of_our_own_domain() {
    let (ours, partner) = (mesh(TD), mesh(PARTNER));
    let believed = roots(&ours, &[&partner]).own_and(ours.ca.roots());
    let refused = call(&partner.svid("web"), &believed, &ours).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}
