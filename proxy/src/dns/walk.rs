//! The walk through the search list that a resolver does for a name with few dots: `db` in a pod of namespace `shop` is asked for as
//! `db.shop.svc.cluster.local`, `db.svc.cluster.local`, `db.cluster.local` and so on, twice, for A and AAAA. Whoever asks for the first of
//! these is about to walk; so we walk for it, and answer the first question with the result: a CNAME to the name that exists.
//!
//! Invariants
//! - What exists under the name that was asked for is what is answered.
//! - A failure on the way is a failure: what comes after it might not be what was meant.
//! - Where nothing exists, the answer is that of the name that was asked for. The rest of the walk is then in the cache.
//! - A single label is never asked for as it stands, so `db` does not leave the cluster as a top-level domain.

use std::sync::Arc;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::CNAME;
use hickory_resolver::proto::rr::{Name, RData, Record};

use super::cache::{Answer, Key};
use super::count;
use super::flight::{From, Resolver};

/// What is asked one after another for this name: itself, and, if it is the first step of a walk, the other steps.
pub fn steps(name: &Name, search: &[Name]) -> Vec<Name> {
    let mut steps = vec![name.clone()];
    let Some((first, others)) = search.split_first().filter(|(first, _)| !first.is_root() && first.zone_of(name))
    else {
        return steps;
    };
    let labels: Vec<&[u8]> =
        name.iter().take(usize::from(name.num_labels().saturating_sub(first.num_labels()))).collect();
    let Ok(mut base) = Name::from_labels(labels.iter().copied()) else { return steps };
    if labels.is_empty() {
        return steps;
    }
    for domain in others {
        base.set_fqdn(false);
        steps.extend(base.clone().append_domain(domain));
    }
    if labels.len() > 1 {
        base.set_fqdn(true);
        steps.push(base);
    }
    steps
}

/// The answer to what the application asked.
pub async fn answer(resolver: &Arc<Resolver>, asked: &Key) -> (Arc<Answer>, From) {
    let mut first = None;
    for name in steps(&asked.name, &resolver.zone.search) {
        let key = Key { name, ..asked.clone() };
        let (answer, from) = resolver.resolve(&key).await;
        match answer.code {
            ResponseCode::NXDomain => _ = first.get_or_insert((answer, from)),
            ResponseCode::NoError if key.name != asked.name => {
                count(&resolver.counters.walked);
                return (Arc::new(under(&asked.name, &key.name, &answer)), from);
            }
            _ => return (answer, from),
        }
    }
    first.unwrap_or_else(|| (Arc::new(Answer::failure()), From::Asked))
}

fn under(asked: &Name, found: &Name, answer: &Answer) -> Answer {
    let all = || answer.records.iter().chain(&answer.authority);
    let ttl = all().map(|record| record.ttl).min().unwrap_or_default();
    let cname = Record::from_rdata(asked.clone(), ttl, RData::CNAME(CNAME(found.clone())));
    let records = std::iter::once(cname).chain(answer.records.iter().cloned()).collect();
    Answer { code: answer.code, records, authority: answer.authority.clone() }
}
