//! What the plan itself leaves open.

use super::connection;
use super::finding::Finding;
use crate::cutover::plan::Plan;

/// Looks at the plan alone.
pub(super) fn look(plan: &Plan) -> Vec<Finding> {
    let hooks = &plan.hooks;
    let commands = [
        ("hooks.maintenance_on", &hooks.maintenance_on, true),
        ("hooks.switch_to_replica", &hooks.switch_to_replica, plan.source.is_some()),
        ("hooks.switch_to_target", &hooks.switch_to_target, plan.target.is_some()),
        ("hooks.maintenance_off", &hooks.maintenance_off, true),
    ];
    let missing: Vec<String> = commands
        .into_iter()
        .filter(|(_, command, is_due)| *is_due && command.is_none())
        .map(|(name, ..)| name.to_owned())
        .collect();
    let mut found = Vec::new();
    if !missing.is_empty() {
        found.push(
            Finding::warning("the plan lacks commands of your own")
                .because(
                    "Nothing is run at these points: the application has to be moved by hand, within the downtime.",
                )
                .mends(missing.iter().map(|name| format!("{name} = \"…\"")))
                .about(missing),
        );
    }
    found.extend(connection::planned(plan));
    if plan.reverse.is_none() && plan.target.is_some() {
        found.push(
            Finding::note("the plan has no [reverse]")
                .because("finish --reverse, the way back to the replica without loss, needs it."),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cutover::plan::SAMPLE;

    #[test]
    fn what_the_sample_leaves_open_is_only_the_way_back() {
        let read = |replacements: &[&str]| {
            let replacements: Vec<_> = replacements.iter().map(|text| text.to_string()).collect();
            Plan::read(SAMPLE, &replacements, |name| match name {
                "SOURCE_URL" => Some("postgres://app:s3cret@source/app".into()),
                _ => Some("w0rd".into()),
            })
            .unwrap()
        };
        let told = |plan: &Plan| look(plan).iter().map(|finding| finding.what.clone()).collect::<Vec<_>>();
        assert_eq!(told(&read(&[])), ["the plan has no [reverse]"]);
        let mut plan = read(&["reverse.publisher_for_replica=host=t dbname=d user=u"]);
        assert_eq!(told(&plan), [""; 0]);
        plan.hooks.maintenance_off = None;
        plan.replication.publisher_for_target = None;
        assert_eq!(
            told(&plan),
            ["the plan lacks commands of your own", "the plan does not say how the target reaches the publisher"]
        );
        assert_eq!(look(&plan)[0].objects, ["hooks.maintenance_off"]);
    }
}
