import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.protocols.form import read_form
from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.base.errors import PocketzooError, UsageError

SETTINGS = Settings(max_images=3, max_image_bytes=1000)


def form(*parts: tuple[str, bytes], boundary: bytes = b"xyz", end: bytes = b"--") -> bytes:
    body = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (boundary, head.encode(), content)
        for head, content in parts
    )
    return body + b"--" + boundary + end + b"\r\n"


def image(content: bytes = b"1", file: str = "a.png") -> tuple[str, bytes]:
    return f'name="images"; filename="{file}"', content


def read(body: bytes, content_type: bytes = b"multipart/form-data; boundary=xyz"):
    return read_form(content_type, body, SETTINGS)


@given(st.lists(st.binary(max_size=300).filter(lambda content: b"--xyz" not in content), min_size=1, max_size=3))
def test_images_come_out_as_they_went_in(contents):
    upload = read(form(*(image(content, f"{at}.png") for at, content in enumerate(contents))))
    assert upload.pictures == tuple((f"{at}.png", content) for at, content in enumerate(contents))
    assert upload.model is None


@given(st.binary(max_size=400), st.binary(max_size=40))
def test_whatever_is_sent_is_a_form_or_refused(body, content_type):
    for sent in (body, form(image(body))[: len(body)], form(image(), (content_type.hex(), body))):
        for kind in (
            content_type,
            b"multipart/form-data; boundary=xyz",
            b"multipart/form-data; boundary=" + content_type,
        ):
            try:
                read(sent, kind)
            except PocketzooError as error:
                assert str(error)


@pytest.mark.parametrize(
    ("head", "file"),
    [
        ('name="images"; filename="a \\\\ \\"b\\".png"', 'a \\ "b".png'),
        ("filename=a.png; name=images", "a.png"),
        ("NAME=images;filename*=UTF-8''a.png", "UTF-8''a.png"),
        ('name="images"; filename="ä.png"', "ä.png"),
        ('name="images"; filename=""', ""),
        ('name="images"; filename="a;b.png"', "a;b.png"),
    ],
)
def test_a_file_s_name_as_clients_write_it(head, file):
    assert read(form((head, b"1"))).pictures == ((file, b"1"),)


@pytest.mark.parametrize("before", [b"\r\n", b"This is a form.\r\n"])
def test_text_before_the_first_boundary_is_passed_over(before):
    assert read(before + form(image())).pictures == (("a.png", b"1"),)


@pytest.mark.parametrize(
    "kind", [b'multipart/form-data; boundary="xyz"', b"Multipart/Form-Data;charset=x;BOUNDARY=xyz"]
)
def test_a_boundary_as_clients_write_it(kind):
    assert read(form(image()), kind).pictures == (("a.png", b"1"),)


@pytest.mark.parametrize("sent", [b"vit", b'"vit"'])
def test_the_model_is_named_as_text_or_json(sent):
    assert read(form(image(), ('name="model"', sent))).model == "vit"


@pytest.mark.parametrize("sent", [b"", b"null", b'""'])
def test_no_name_means_the_default(sent):
    assert read(form(('name="model"', sent), image())).model is None


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (form(), "no image"),
        (form(image())[:-8], "ends before its closing boundary"),
        (form(("name=images", b"http://example.com/cat.jpg")), "expected a file, got text"),
        (form(image(), ("name=model; filename=m", b"vit")), "expected a name as text, got a file"),
        (form(image(), ("name=model", b"a"), ("name=model", b"b")), "expected one name, got 2"),
        (form(image(), ("name=model", b"x" * 5000)), "expected a name, got 5000 bytes"),
        (form(image(), ("name=imges", b"x")), "unknown form field 'imges'; did you mean image"),
        (form(image(), ("name=file", b"x")), "form field `file`: expected a file, got text"),
        (b"nonsense", "cannot read the form: its boundary is not in it"),
        (b"--xyz\r\nContent-Disposition: form-data\r\n--xyz--", "part 1 has no empty line"),
        (form(image(file="a" * 5000)), "part 1 has no empty line behind at most 4096 bytes"),
    ],
)
def test_a_mistake_is_refused_in_a_sentence(body, sentence):
    with pytest.raises(UsageError, match=sentence):
        read(body)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (form(*[image()] * 4), b"multipart/form-data; boundary=xyz", 413),
        (form(*[image()] * 50), b"multipart/form-data; boundary=xyz", 413),
        (form(image(b"x" * 1001)), b"multipart/form-data; boundary=xyz", 413),
        (form(image()), b"application/vnd.bentoml+pickle", 415),
        (form(image()), b"", 415),
    ],
)
def test_limits_have_their_own_status(body, content_type, status):
    with pytest.raises(Refused) as caught:
        read(body, content_type)
    assert caught.value.status == status


def test_a_form_without_a_boundary_is_refused():
    with pytest.raises(UsageError, match="names no boundary"):
        read(form(image()), b"multipart/form-data")
