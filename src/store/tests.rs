use super::*;
use crate::model::{Node, ObjectName, Service};
use std::path::PathBuf;

fn model(nodes: &[(&str, &str)]) -> Arc<Model> {
    let mut model = Model::default();
    for (name, label) in nodes {
        let node = Node {
            name: (*name).into(),
            labels: [("zone".to_owned(), (*label).to_owned())].into(),
            ..Node::default()
        };
        model.nodes.insert(node.name.clone(), Arc::new(node));
    }
    let service = Service { name: ObjectName::new("shop", "web"), ..Service::default() };
    model.services.insert(service.name.clone(), Arc::new(service));
    Arc::new(model)
}

#[test]
fn an_empty_model_still_makes_it_synced() {
    let store = Store::new();
    assert!(!store.current().synced);
    store.publish(Arc::default());
    let first = store.current();
    assert!(first.synced);
    assert_eq!(first.generation, 1);
    store.publish(Arc::default());
    assert_eq!(store.current().generation, 1);
}

#[test]
fn equal_models_wake_nobody_and_unchanged_objects_stay_the_same() {
    let store = Store::new();
    let mut watch = store.subscribe();
    store.publish(model(&[("a", "1"), ("b", "1"), ("c", "1")]));
    assert!(watch.has_changed().unwrap());
    let first = watch.borrow_and_update().clone();
    store.publish(model(&[("a", "1"), ("b", "1"), ("c", "1")]));
    assert!(!watch.has_changed().unwrap());

    store.publish(model(&[("aa", "1"), ("b", "2"), ("c", "1")]));
    assert!(watch.has_changed().unwrap());
    let second = watch.borrow_and_update().clone();
    assert_eq!(second.generation, first.generation + 1);
    assert_eq!(*second.model, *model(&[("aa", "1"), ("b", "2"), ("c", "1")]));
    assert!(Arc::ptr_eq(&first.model.nodes["c"], &second.model.nodes["c"]));
    assert!(!Arc::ptr_eq(&first.model.nodes["b"], &second.model.nodes["b"]));
    let name = ObjectName::new("shop", "web");
    assert!(Arc::ptr_eq(&first.model.services[&name], &second.model.services[&name]));
}

#[test]
fn a_removal_alone_is_a_change() {
    let store = Store::new();
    store.publish(model(&[("a", "1"), ("b", "1")]));
    store.publish(model(&[("b", "1")]));
    assert_eq!(store.current().generation, 2);
    assert_eq!(store.current().model.nodes.len(), 1);
}

#[test]
fn reports_wake_only_when_they_differ() {
    let store = Store::new();
    let mut watch = store.reports();
    let problem = Problem {
        path: PathBuf::from("/etc/netd/state/a.yaml"),
        line: Some(3),
        column: Some(7),
        severity: Severity::Error,
        object: Some("Service shop/web".to_owned()),
        message: "spec.ports[0].port: 70000 is not a port (1 to 65535)".to_owned(),
    };
    assert_eq!(
        problem.to_string(),
        "/etc/netd/state/a.yaml:3:7: Service shop/web: spec.ports[0].port: 70000 is not a port (1 to 65535)"
    );
    let report = Report { synced: false, problems: vec![problem], ..Report::default() };
    store.report(report.clone());
    assert!(watch.has_changed().unwrap());
    assert_eq!(watch.borrow_and_update().errors().count(), 1);
    store.report(report);
    assert!(!watch.has_changed().unwrap());
}
