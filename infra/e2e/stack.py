"""A deployed stack, for its operator and its callers.

Secrets are never process arguments and are never printed.
"""

import base64
import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

checks = 0


def check(what, holds, seen=None):
    global checks
    if not holds:
        raise SystemExit(f"{what}; got {seen!r}" if seen is not None else what)
    checks += 1


def wait_for(what, seconds, look):
    """Waits until `look` returns something, and returns it. Prints the time that this took."""
    start = time.monotonic()
    while (found := look()) is None:
        if time.monotonic() - start > seconds:
            raise SystemExit(f"{what}: not within {seconds} s")
        time.sleep(0.2)
    print(f"{what}: after {time.monotonic() - start:.1f} s", flush=True)
    return found


def send(request):
    """Sends a request. Returns the response's status, headers, and JSON or the text of its events."""
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, headers, text = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, headers, text = error.code, error.headers, error.read()
    is_stream = (headers.get("Content-Type") or "").startswith("text/event-stream")
    return status, headers, text.decode() if is_stream else json.loads(text or b"null")


def request(url, method, bearer=None, body=None, headers=()):
    made = urllib.request.Request(url, method=method)
    if bearer is not None:
        made.add_header("Authorization", f"Bearer {bearer}")
    if body is not None:
        made.add_header("Content-Type", "application/json")
        made.data = json.dumps(body).encode()
    for name, value in dict(headers).items():
        made.add_header(name, value)
    return made


class Stack:
    """A stack of one stage, in the AWS account that the environment names."""

    inside = {"domainName": "internal.example.com", "sourceIp": "10.1.2.3"}

    def __init__(self, stage):
        self.stage = stage
        self.name = f"karta-{stage}"
        self.endpoint = boto3.client("lambda").meta.endpoint_url
        self.gateway = boto3.client("apigateway")
        self.functions = boto3.client("lambda")
        self.secrets = boto3.client("secretsmanager")
        self.tables = boto3.client("dynamodb")
        self.stacks = boto3.client("cloudformation")

    # For the operator.

    def deploy(self, parameters, template=None):
        """Runs `sam deploy` with the built template or `template`. Returns whether it succeeded,
        and its output."""
        # The emulator cannot stream.
        parameters = {"Stage": self.stage, "ResponseTransferMode": "BUFFERED", **parameters}
        overrides = [f"{name}={value}" for name, value in parameters.items()]
        # By default, SAM CLI looks for samconfig.toml next to the template.
        config = ["--config-file", str(Path("samconfig.toml").resolve()), "--config-env", "dev"]
        command = ["sam", "deploy", *config, "--stack-name", self.name, "--no-confirm-changeset", "--no-progressbar"]
        command += ["--template", template] if template else []
        start = time.monotonic()
        ran = subprocess.run([*command, "--parameter-overrides", *overrides], capture_output=True, text=True)
        print(f"sam deploy: {time.monotonic() - start:.0f} s", flush=True)
        return ran.returncode == 0, ran.stdout + ran.stderr

    def refusal(self, template, parameters):
        """Creates a change set with these parameters as `sam deploy` does. Returns CloudFormation's
        error, or None."""
        bucket = boto3.client("s3")
        bucket.create_bucket(Bucket="rehearsal")
        bucket.upload_file(str(template), "rehearsal", "template.yaml")
        try:
            self.stacks.create_change_set(
                StackName="karta-wrong",
                ChangeSetName="wrong",
                ChangeSetType="CREATE",
                TemplateURL=f"{self.endpoint}/rehearsal/template.yaml",
                Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
                Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
            )
        except ClientError as error:
            return str(error)
        return None

    def template(self):
        """Returns the template of the last deploy, which refers to the code by its location in the
        bucket."""
        return self.stacks.get_template(StackName=self.name, TemplateStage="Original")["TemplateBody"]

    def status(self):
        return self.stacks.describe_stacks(StackName=self.name)["Stacks"][0]["StackStatus"]

    def outputs(self):
        outputs = self.stacks.describe_stacks(StackName=self.name)["Stacks"][0]["Outputs"]
        return {output["OutputKey"]: output["OutputValue"] for output in outputs}

    def parameter(self, name):
        parameters = self.stacks.describe_stacks(StackName=self.name)["Stacks"][0]["Parameters"]
        return next(parameter["ParameterValue"] for parameter in parameters if parameter["ParameterKey"] == name)

    def physical(self, logical):
        described = self.stacks.describe_stack_resource(StackName=self.name, LogicalResourceId=logical)
        return described["StackResourceDetail"]["PhysicalResourceId"]

    def secret(self, name):
        return self.secrets.get_secret_value(SecretId=f"karta/{self.stage}/{name}")["SecretString"]

    def put_secret(self, name, value):
        self.secrets.put_secret_value(SecretId=f"karta/{self.stage}/{name}", SecretString=value)

    def configure(self, logical, **changes):
        """Changes a function without CloudFormation. Its next invocation is a cold start."""
        self.functions.update_function_configuration(FunctionName=self.physical(logical), **changes)

    def environment(self, logical):
        described = self.functions.get_function_configuration(FunctionName=self.physical(logical))
        return described["Environment"]["Variables"]

    def invoke(self, logical, event):
        """Invokes a function. Returns its answer, its error and the end of its log."""
        answer = self.functions.invoke(FunctionName=self.physical(logical), Payload=json.dumps(event), LogType="Tail")
        logged = base64.b64decode(answer.get("LogResult", "")).decode()
        return json.loads(answer["Payload"].read() or b"null"), answer.get("FunctionError"), logged

    # For callers.

    def url(self, path):
        api = self.physical("Api")
        return f"{self.endpoint}/_aws/execute-api/{api}/{self.stage}{path}"

    def call(self, method, path, bearer=None, body=None, headers=()):
        """Sends a request through API Gateway. Returns the status and the JSON."""
        status, _, answer = send(request(self.url(path), method, bearer, body, headers))
        return status, answer

    def internal(self, logical, method, path, token, body=None, query=None, inside=None):
        """Invokes an internal route with API Gateway's event, because the emulator omits the
        requested host."""
        inside = inside or self.inside
        headers = {"Host": inside["domainName"], "Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        event = {
            "resource": path,
            "path": path,
            "httpMethod": method,
            "headers": headers,
            "multiValueHeaders": {name: [value] for name, value in headers.items()},
            "queryStringParameters": query,
            "multiValueQueryStringParameters": query and {name: [value] for name, value in query.items()},
            "pathParameters": None,
            "stageVariables": None,
            "requestContext": {
                "accountId": "000000000000",
                "apiId": "rehearsal",
                "domainName": inside["domainName"],
                "httpMethod": method,
                "identity": {"sourceIp": inside["sourceIp"], "userAgent": "rehearsal"},
                "path": f"/{self.stage}{path}",
                "protocol": "HTTP/1.1",
                "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
                "requestTimeEpoch": int(time.time() * 1000),
                "resourceId": "rehearsal",
                "resourcePath": path,
                "stage": self.stage,
            },
            "body": None if body is None else json.dumps(body),
            "isBase64Encoded": False,
        }
        answer, error, logged = self.invoke(logical, event)
        check(f"{logical} answers", error is None, (error, logged))
        return answer["statusCode"], json.loads(answer["body"] or "null")

    def routes(self):
        """Returns every route of the deployed API: its method, its path and whether it has the
        authorizer."""
        pages = self.gateway.get_paginator("get_resources").paginate(restApiId=self.physical("Api"), embed=["methods"])
        return [
            (method, resource["path"], integration["authorizationType"] == "CUSTOM")
            for page in pages
            for resource in page["items"]
            for method, integration in resource.get("resourceMethods", {}).items()
        ]
