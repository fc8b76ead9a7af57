//! The compiled table: all matches of all routes of a service port, in order of precedence.

use std::cmp::{Ordering, Reverse};

use super::matching::written;
use super::{Called, Ended, Filters, Match, PathMatch, Route, Rule, pick_backend};
use crate::reason::Reason;
use crate::request::RequestView;

/// The compiled rules of all routes of one service port.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    rules: Vec<Rule>,
    // (rule, match) pairs in order of precedence. `None`: the rule has no match and takes every request.
    order: Vec<(usize, Option<usize>)>,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The rule that took it.
    pub rule: &'a Rule,
    /// Its place in [`RouteTable::rules`].
    pub rule_index: usize,
    /// The backend that the draw fell on, in `rule.backends`.
    pub backend: usize,
    /// What is done to the request and its response.
    pub filters: Filters<'a>,
}

impl RouteTable {
    /// Sorts the matches of all routes once; the order in which the routes are given does not matter.
    pub fn new(mut routes: Vec<Route>) -> Self {
        routes.sort_by(by_age);
        let rules: Vec<Rule> = routes.into_iter().flat_map(|route| route.rules).collect();
        let mut order = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            if rule.matches.is_empty() {
                order.push((index, None));
            }
            order.extend((0..rule.matches.len()).map(|at| (index, Some(at))));
        }
        // The sort is stable and rules stand in order of age, name and position already: it settles the rest.
        let all = Match::default();
        order.sort_by_key(|&(rule, at)| precedence(&rules[rule].route, at.map_or(&all, |at| &rules[rule].matches[at])));
        Self { rules, order }
    }

    /// The rule that takes a request, with its place in [`Self::rules`]. `None`: no rule does, answer [`Reason::NoRoute`].
    pub fn select(&self, request: &RequestView<'_>) -> Option<(&Rule, usize)> {
        self.select_match(request).map(|(rule, _)| (&self.rules[rule], rule))
    }

    /// As [`Self::select`], with the match that took it: its place in the rule's matches, `None` if the rule has none.
    pub fn select_match(&self, request: &RequestView<'_>) -> Option<(usize, Option<usize>)> {
        self.order
            .iter()
            .find(|&&(rule, at)| at.is_none_or(|at| self.rules[rule].matches[at].matches(request)))
            .copied()
    }

    /// The rule and the backend for a request; `random` is uniform over all of `u64`.
    ///
    /// # Errors
    /// No rule matches, the backend cannot be used, or a filter answers instead.
    pub fn choose(&self, request: &RequestView<'_>, called: &Called<'_>, random: u64) -> Result<Choice<'_>, Ended> {
        let (rule, rule_index) = self.select(request).ok_or(Reason::NoRoute)?;
        let filters = Filters { rule: &rule.filters, backend: &[] };
        if let Some(answer) = filters.answer(request, called)? {
            return Err(Ended::Answered(Box::new(answer)));
        }
        let backend = pick_backend(&rule.backends, random).ok_or(Reason::InvalidBackend)?;
        let chosen = &rule.backends[backend];
        if chosen.invalid.is_some() {
            return Err(Reason::InvalidBackend.into());
        }
        let filters = Filters { backend: &chosen.filters, ..filters };
        match filters.answer(request, called)? {
            Some(answer) => Err(Ended::Answered(Box::new(answer))),
            None => Ok(Choice { rule, rule_index, backend, filters }),
        }
    }

    /// All rules: routes by age and name, each route's rules as they are written.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// The oldest first, then by name.
pub(super) fn by_age(a: &Route, b: &Route) -> Ordering {
    (a.created, by_name(&a.name)).cmp(&(b.created, by_name(&b.name)))
}

/// `NAMESPACE/NAME` first, the kind only to break a tie between kinds.
fn by_name(name: &str) -> (&str, &str) {
    let (kind, rest) = name.split_once('/').unwrap_or(("", name));
    (rest, kind)
}

/// A place in the order of precedence; smaller goes first.
type Rank = (bool, Reverse<usize>, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>);

/// Sorts by what Gateway API ranks first.
fn precedence(route: &str, wanted: &Match) -> Rank {
    if route.starts_with("GRPCRoute/") {
        let (service, method) = wanted.path.as_ref().map_or((0, 0), called);
        let headers = Reverse(wanted.headers.len());
        return (false, Reverse(service), Reverse(method), false, headers, Reverse(0));
    }
    let (inexact, length) = match &wanted.path {
        Some(PathMatch::Exact(path)) => (false, path.chars().count()),
        // `/a/` and `/a` match the same paths, so they weigh the same; no path means `/`.
        Some(PathMatch::Prefix(prefix)) => (true, prefix.strip_suffix('/').unwrap_or(prefix).chars().count().max(1)),
        Some(PathMatch::Regex(regex)) => (true, written(regex).chars().count()),
        None => (true, 1),
    };
    let (headers, query) = (Reverse(wanted.headers.len()), Reverse(wanted.query.len()));
    (inexact, Reverse(length), Reverse(0), wanted.method.is_none(), headers, query)
}

/// What a path says of a gRPC service and method (`/SERVICE/METHOD`): how many characters of each. `[^/]+` stands for any.
fn called(path: &PathMatch) -> (usize, usize) {
    const ANY: &str = "[^/]+";
    let text = match path {
        PathMatch::Exact(text) | PathMatch::Prefix(text) => text.as_str(),
        PathMatch::Regex(regex) => written(regex),
    };
    let text = text.strip_prefix('/').unwrap_or(text);
    // A pattern is written without the group that holds it together.
    let count = |part: &str| {
        let inner = part.strip_prefix("(?:").and_then(|part| part.strip_suffix(')'));
        inner.unwrap_or(part).chars().count()
    };
    if let Some(method) = text.strip_prefix(ANY).and_then(|rest| rest.strip_prefix('/')) {
        return (0, if method == ANY { 0 } else { count(method) });
    }
    if let Some(service) = text.strip_suffix(ANY).and_then(|rest| rest.strip_suffix('/')) {
        return (count(service), 0);
    }
    text.rsplit_once('/').map_or((count(text), 0), |(service, method)| (count(service), count(method)))
}

#[cfg(test)]
mod tests;
