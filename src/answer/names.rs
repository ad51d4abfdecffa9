//! What a name in a question stands for: `namespace/name`, a name alone, or one with a typo that is answered with those
//! that may have been meant.

use super::Refused;
use crate::model::ObjectName;
use std::collections::BTreeSet;

/// Names suggested at most.
const SUGGESTED: usize = 3;

/// The one of these names that is meant: `namespace/name`, or a name alone if only one has it. `what` is what
/// they are names of.
///
/// # Errors
/// None is, or several are.
pub fn pick<'a>(
    what: &str,
    asked: &str,
    known: impl Iterator<Item = &'a ObjectName>,
) -> Result<ObjectName, Refused> {
    let known: BTreeSet<&ObjectName> = known.collect();
    let named: Vec<&ObjectName> = match asked.split_once('/') {
        Some((namespace, name)) => {
            known.iter().copied().filter(|one| *one.namespace == *namespace && *one.name == *name).collect()
        }
        None => known.iter().copied().filter(|one| *one.name == *asked).collect(),
    };
    let texts = |names: &[&ObjectName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    match named.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let suggestions = texts(&similar(asked, &known));
            let meant = match suggestions.as_slice() {
                [] => String::new(),
                some => format!(": did you mean {}?", some.join(" or ")),
            };
            Err(Refused { error: format!("there is no {what} {asked}{meant}"), suggestions })
        }
        several => {
            let suggestions = texts(several);
            let error = format!("{what} {asked} is several: {}", suggestions.join(", "));
            Err(Refused { error, suggestions })
        }
    }
}

/// The most similar ones, the best first.
fn similar<'a>(asked: &str, known: &BTreeSet<&'a ObjectName>) -> Vec<&'a ObjectName> {
    let scored = known.iter().filter_map(|one| Some((distance(asked, one)?, *one)));
    let mut scored: Vec<(usize, &ObjectName)> = scored.collect();
    scored.sort_unstable();
    scored.into_iter().take(SUGGESTED).map(|(_, one)| one).collect()
}

/// How far a name is from what was asked, in letters (optimal string alignment); none if too far.
fn distance(asked: &str, one: &ObjectName) -> Option<usize> {
    /// What a part of a name is as far away as: most likely it was meant.
    const PART: usize = 1;
    let typos = |asked: &str, name: &str| {
        let distance = strsim::osa_distance(asked, name);
        (distance <= 1 + asked.chars().count() / 4).then_some(distance)
    };
    let (namespace, name) = asked.split_once('/').unwrap_or(("", asked));
    if !namespace.is_empty() && namespace != &*one.namespace {
        // The right name in a wrong namespace, or a namespace with a typo.
        return if name == &*one.name { Some(0) } else { typos(asked, &one.to_string()) };
    }
    let part = name.len() >= 3 && one.name.contains(name);
    if part { Some(PART) } else { typos(name, &one.name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<ObjectName> {
        let split = texts.iter().map(|text| text.split_once('/').unwrap());
        split.map(|(namespace, name)| ObjectName::new(namespace, name)).collect()
    }

    fn refused(asked: &str, known: &[&str]) -> String {
        pick("Service", asked, names(known).iter()).unwrap_err().error
    }

    #[test]
    fn a_name_alone_does_if_only_one_has_it() {
        let known = names(&["shop/web", "shop/db", "blog/db"]);
        let pick = |asked| pick("Service", asked, known.iter()).map(|one| one.to_string());
        assert_eq!(pick("web"), Ok("shop/web".to_owned()));
        assert_eq!(pick("blog/db"), Ok("blog/db".to_owned()));
        let error = refused("db", &["shop/web", "shop/db", "blog/db"]);
        assert_eq!(error, "Service db is several: blog/db, shop/db");
    }

    #[test]
    fn what_may_have_been_meant_is_suggested_and_nothing_else() {
        let known = ["shop/web", "shop/checkout", "blog/wiki", "kube-system/kube-dns"];
        assert_eq!(refused("shop/wbe", &known), "there is no Service shop/wbe: did you mean shop/web?");
        assert_eq!(refused("chekout", &known), "there is no Service chekout: did you mean shop/checkout?");
        assert_eq!(refused("blog/web", &known), "there is no Service blog/web: did you mean shop/web?");
        assert_eq!(refused("dns", &known), "there is no Service dns: did you mean kube-system/kube-dns?");
        assert_eq!(refused("shp/web", &known), "there is no Service shp/web: did you mean shop/web?");
        assert_eq!(refused("shop/zzz", &known), "there is no Service shop/zzz");
        assert_eq!(refused("", &known), "there is no Service ");
        assert_eq!(refused("x", &[]), "there is no Service x");
    }
}
