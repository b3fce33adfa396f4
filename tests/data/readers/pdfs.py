"""PDF files of a few objects, written by hand."""


def pdf(pages: list[str], *, box: str = "0 0 200 100", trailer: str = "") -> bytes:
    """A PDF with one line of text on each page, its offsets as they should be."""
    numbers = [5 + 2 * i for i in range(len(pages))]
    kids = " ".join(f"{n} 0 R" for n in numbers)
    objects = {
        1: "<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        3: "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        4: "<< /Filter /Standard /V 1 /R 2 /P -4 "
        f"/O <{'41' * 32}> /U <{'42' * 32}> >>",
    }  # fmt: skip
    for number, text in zip(numbers, pages, strict=True):
        stream = f"BT /F1 18 Tf 20 50 Td ({text}) Tj ET"
        objects[number] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [{box}] /Contents {number + 1} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects[number + 1] = f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream"
    content, offsets = b"%PDF-1.4\n", {}
    for number in sorted(objects):
        offsets[number] = len(content)
        content += f"{number} 0 obj\n{objects[number]}\nendobj\n".encode()
    table = "".join(f"{offsets[n]:010} 00000 n \n" for n in sorted(objects))
    size = len(objects) + 1
    return (
        content
        + (
            f"xref\n0 {size}\n0000000000 65535 f \n{table}"
            f"trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\nstartxref\n{len(content)}\n%%EOF\n"
        ).encode()
    )
