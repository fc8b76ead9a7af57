//! The compiled table: all matches of all routes of a service port, in order of precedence.

use std::cmp::{Ordering, Reverse};

use super::matching::written;
use super::{Match, PathMatch, Route, Rule, pick_backend};
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
        order.sort_by_key(|&(rule, at)| precedence(at.map_or(&all, |at| &rules[rule].matches[at])));
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
    pub fn choose(&self, request: &RequestView<'_>, random: u64) -> Result<Choice<'_>, Reason> {
        let (rule, rule_index) = self.select(request).ok_or(Reason::NoRoute)?;
        let backend = pick_backend(&rule.backends, random).ok_or(Reason::InvalidBackend)?;
        if rule.backends[backend].invalid.is_some() {
            return Err(Reason::InvalidBackend);
        }
        Ok(Choice { rule, rule_index, backend })
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

/// Sorts by what Gateway API ranks first; smaller goes first.
fn precedence(wanted: &Match) -> (bool, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>) {
    let (inexact, length) = match &wanted.path {
        Some(PathMatch::Exact(path)) => (false, path.chars().count()),
        // `/a/` and `/a` match the same paths, so they weigh the same; no path means `/`.
        Some(PathMatch::Prefix(prefix)) => (true, prefix.strip_suffix('/').unwrap_or(prefix).chars().count().max(1)),
        Some(PathMatch::Regex(regex)) => (true, written(regex).chars().count()),
        None => (true, 1),
    };
    (inexact, Reverse(length), wanted.method.is_none(), Reverse(wanted.headers.len()), Reverse(wanted.query.len()))
}

#[cfg(test)]
mod tests;
