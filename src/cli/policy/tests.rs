use super::*;
use crate::answer::samples;

#[test]
fn a_list_of_a_node_and_of_a_folder() {
    insta::assert_snapshot!(list(&samples::policies(), None).render(false), @r"
    POLICY             ISOLATES         PODS HERE  RULES
    shop/api           ingress, egress  2          2 ingress, 1 egress
    shop/db-allow      ingress          1          1 ingress
    shop/default-deny  ingress, egress  9          none

    pod shop/big-0: nothing is allowed: its policies need 40 more rows, 65530 of 65536 are in use (datapath.policy_rows)
      next: netd status

    pod c2: nothing is allowed: its policies could not be put into effect
      next: netd status
    ");
    let folder = list(&samples::folder_policies(), None).render(false);
    assert!(folder.contains("ISOLATES         PODS  RULES") && !folder.contains("next"), "{folder}");
    let none = Policies { policies: Vec::new(), ..samples::folder_policies() };
    assert_eq!(list(&none, None).render(false), "no NetworkPolicies\n");
    assert_eq!(list(&none, Some("blog")).render(false), "no NetworkPolicies in blog\n");
}

#[test]
fn one_policy_with_whom_its_rules_mean() {
    insta::assert_snapshot!(show(&samples::policy()).render(false), @r"
    NetworkPolicy shop/db-allow  isolates ingress
    selects pods app=db in shop; 1 pod of node-1: shop/db-0

    ingress rule 1
      from   pods app=web: shop/web-0, shop/web-1, shop/web-2, shop/web-3 and 2 more
             all pods of namespaces team in (a,b): none now
      ports  5432/tcp, pg/tcp (5432, 5433)

    ingress rule 2
      from   10.0.0.0/8 except 10.1.0.0/16
      ports  9000-9010/udp

    egress rule 1  (means nothing: policyTypes leaves this direction out)
      to     everybody
      ports  all
    ");
    insta::assert_snapshot!(show(&samples::denying_policy()).render(false), @r"
    NetworkPolicy shop/default-deny  isolates ingress, egress
    selects all pods in shop; 0 pods

    no rule for ingress: it allows nothing

    no rule for egress: it allows nothing
    ");
}

#[test]
fn a_pod_by_direction() {
    insta::assert_snapshot!(explain(&samples::explained()).render(false), @r"
    Pod shop/db-0  10.42.3.6, fd00:42:3::6  on node-1

    ingress: isolated by shop/db-allow and shop/default-deny
      FROM                                                                     PORTS                          BY
      pods app=web: shop/web-0, shop/web-1, shop/web-2, shop/web-3 and 2 more  5432/tcp, pg/tcp (5432, 5433)  shop/db-allow rule 1
      all pods of namespaces team in (a,b): none now                           5432/tcp, pg/tcp (5432, 5433)  shop/db-allow rule 1
      10.0.0.0/8 except 10.1.0.0/16                                            9000-9010/udp                  shop/db-allow rule 2
      everybody                                                                all                            shop/db-allow rule 3

    egress: no policy isolates it, everything is allowed  (a change is on its way to the kernel)

    always allowed: the pod itself, and its own node
    ");
    insta::assert_snapshot!(explain(&samples::closed_pod()).render(false), @r"
    Pod shop/db-0  10.42.3.6, fd00:42:3::6  on node-1
    nothing is allowed: its policies need 40 more rows, 65530 of 65536 are in use (datapath.policy_rows)
      next: netd status

    ingress: isolated by shop/default-deny  (not in effect: nothing is allowed)
      nothing is allowed: none of them has a rule for it

    egress: isolated by shop/default-deny  (not in effect: nothing is allowed)
      nothing is allowed: none of them has a rule for it

    always allowed: the pod itself, and its own node
    ");
    insta::assert_snapshot!(explain(&samples::exempt_pod()).render(false), @r"
    Pod kube-system/proxy  no address
    it uses its node's network, and no policy selects it
    ");
}

#[test]
fn a_verdict_with_its_reasons() {
    insta::assert_snapshot!(eval(&samples::evaluated()).render(false), @r"
    shop/web-0 → shop/db-0:5432/tcp  denied

    egress of shop/web-0  allowed  isolated by shop/web; shop/web rule 2 allows it
    ingress of shop/db-0  denied   isolated by shop/db-allow and shop/default-deny; no rule allows it

    note: a change for ingress of shop/db-0 is on its way to the kernel
    ");
    insta::assert_snapshot!(eval(&samples::evaluated_by_family()).render(false), @r"
    shop/web-0 → shop/db-0:5432/tcp  denied

    10.42.3.5 → 10.42.4.6  allowed
    egress of shop/web-0  allowed  isolated by shop/web; shop/web rule 2 allows it
    ingress of shop/db-0  allowed  no policy isolates it

    fd00:42:3::5 → fd00:42:4::6  denied
    egress of shop/web-0  allowed  isolated by shop/web; shop/web rule 2 allows it
    ingress of shop/db-0  denied   isolated by shop/db-allow and shop/default-deny; no rule allows it
    ");
    insta::assert_snapshot!(eval(&samples::exempt_flow()).render(false), @r"
    shop/web-0 → node node-1/icmp  allowed

    a pod and its own node always reach each other
    ");
}
