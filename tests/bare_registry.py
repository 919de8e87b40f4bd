"""Three versions of a model in the registry, without what they are versions of."""

from hpgr.registry.tracking import experiment_id


def make_versions(client, cfg):
    """Version 1 was champion before, 2 is, 3 is the challenger."""
    name = cfg.register_.model_name
    client.create_registered_model(name)
    run = client.create_run(experiment_id(client, cfg.register_.experiment)).info.run_id
    for number, alias in enumerate(("previous", "champion", "challenger"), start=1):
        client.create_model_version(name, source="file:///nowhere", run_id=run)
        client.set_registered_model_alias(name, alias, str(number))
