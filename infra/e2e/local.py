"""Prepares and tests `sam local`.

local.py store <file>     creates the template's tables and secrets, and writes the functions' variables
local.py template <file>  writes the built template in a form that SAM CLI can serve
local.py walk <url>       tests the API there, with the first key from stdin
"""

import json
import sys
from pathlib import Path

import boto3
import yaml

import stack
import walk

stage = "local"
kept = ("AWS::DynamoDB::Table", "AWS::SecretsManager::Secret")


class Template(yaml.SafeLoader):
    """Reads CloudFormation's short forms as long forms."""


def long_form(loader, tag, node):
    name = tag if tag in ("Ref", "Condition") else f"Fn::{tag}"
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        return {name: value.split(".", 1) if tag == "GetAtt" else value}
    return {name: loader.construct_sequence(node, deep=True)}


Template.add_multi_constructor("!", long_form)


def make_store(file):
    template = yaml.load(Path("template.yaml").read_text(), Template)
    resources = {name: resource for name, resource in template["Resources"].items() if resource["Type"] in kept}
    store = {"Parameters": {"Stage": template["Parameters"]["Stage"]}, "Resources": resources}
    stacks = boto3.client("cloudformation")
    stacks.create_stack(StackName="store", TemplateBody=json.dumps(store), Parameters=[{"ParameterKey": "Stage", "ParameterValue": stage}])
    stacks.get_waiter("stack_create_complete").wait(StackName="store", WaiterConfig={"Delay": 1})
    made = {name: stacks.describe_stack_resource(StackName="store", LogicalResourceId=name) for name in resources}
    # Variables that refer to these resources with !Ref. `sam local` leaves them as logical ids.
    variables = {}
    for function in [template["Globals"]["Function"], *(resource["Properties"] for resource in template["Resources"].values())]:
        for variable, value in function.get("Environment", {}).get("Variables", {}).items():
            if isinstance(value, dict) and value.get("Ref") in made:
                variables[variable] = made[value["Ref"]]["StackResourceDetail"]["PhysicalResourceId"]
    Path(file).write_text(json.dumps({"Parameters": variables}))


def make_template(file):
    """Removes CORS preflights: SAM CLI gives all methods of a function on one path the same
    authorizer."""
    template = yaml.load(Path(".aws-sam/build/template.yaml").read_text(), Template)
    every = [resource["Properties"].get("Events", {}) for resource in template["Resources"].values()]
    preflights = [(events, name) for events in every for name, event in events.items() if event["Properties"].get("Method") == "OPTIONS"]
    stack.check("the template has preflights to remove", preflights)
    for events, name in preflights:
        del events[name]
    Path(file).write_text(json.dumps(template))


def walk_api(url):
    admin = json.load(sys.stdin)["api_key"]

    def call(method, path, bearer=None, body=None):
        status, _, answer = stack.send(stack.request(url + path, method, bearer, body))
        return status, answer

    stack.check("a request without a key is rejected", walk.is_rejected(call("GET", "/v1/api_keys")))
    stack.check("a request with an unknown key is rejected", walk.is_rejected(call("GET", "/v1/api_keys", "kt_live_" + "0" * 32)))
    api_key, token = walk.keys(call, admin)
    session = walk.mint(call, token, "my-app")
    walk.session(call, session, "my-app")
    # SAM CLI cannot read the response of a function that streams, so no turn is called.
    path = walk.open_session(call, "/v1/sessions", token)
    stack.check("the session is deleted", call("DELETE", path, token)[0] == 204)
    stack.check("the deleted session is missing", call("GET", path, token)[0] == 404)
    walk.revoke(call, admin, api_key, token)
    print(f"sam local: {stack.checks} passed, 0 failed")


if __name__ == "__main__":
    {"store": make_store, "template": make_template, "walk": walk_api}[sys.argv[1]](sys.argv[2])
