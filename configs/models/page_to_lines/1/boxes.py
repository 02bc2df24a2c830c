"""From the chance of each pixel to be text, to a box around each line: the last part of DB, the detector's method.

The detector marks only the core of a line, so that neighbours do not touch: each patch of marked pixels becomes the smallest
rectangle around it, at any angle, which is then widened to hold the whole line.
"""

import numpy as np

MARKED = 0.3
LEAST_SCORE = 0.5
WIDENED = 1.6
LEAST_SIDE = 3
MOST_BOXES = 1000


def text_boxes(chances):
    """The corners [4,2] (x, y in pixels; top left, top right, bottom right, bottom left) of each line of text.

    ``chances``: FP32 [height,width], 0 to 1.
    """
    marked = chances > MARKED
    # how much chance lies left of each pixel in its row, so that the sum over a run is one difference
    sums = np.pad(np.cumsum(chances, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    boxes = []
    for runs in patches(marked):
        rows, starts, stops = runs.T
        score = (sums[rows, stops] - sums[rows, starts]).sum() / (stops - starts).sum()
        if score >= LEAST_SCORE:
            corners = np.concatenate([np.column_stack([x, y]) for x in (starts, stops) for y in (rows, rows + 1)])
            centre, along, down = smallest_rectangle(hull(corners))
            width, height = 2 * np.hypot(*along), 2 * np.hypot(*down)
            if min(width, height) >= LEAST_SIDE:
                wider = WIDENED * width * height / (2 * (width + height))
                along, down = along * (1 + 2 * wider / width), down * (1 + 2 * wider / height)
                boxes.append(np.array([centre - along - down, centre + along - down, centre + along + down, centre - along + down]))
    return boxes[:MOST_BOXES]


def patches(marked):
    """The connected patches of a mask: for each an array [runs,3] of row, first column, column behind the last."""
    edges = np.diff(np.pad(marked, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    first = np.searchsorted(rows, np.arange(len(marked) + 1))
    starts_at, stops_at = starts.tolist(), stops.tolist()

    # each run points at another one of its patch, the first one at itself
    parents = list(range(len(rows)))

    def patch_of(run):
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    for row in range(1, len(marked)):
        above, below = int(first[row - 1]), int(first[row])
        above_end, below_end = below, int(first[row + 1])
        while above < above_end and below < below_end:
            # they touch, if only at a corner
            if starts_at[above] <= stops_at[below] and starts_at[below] <= stops_at[above]:
                one, other = patch_of(above), patch_of(below)
                parents[max(one, other)] = min(one, other)
            if stops_at[above] < stops_at[below]:
                above += 1
            else:
                below += 1

    members = np.array([patch_of(run) for run in range(len(rows))], np.int64)
    order = np.argsort(members, kind="stable")
    runs = np.column_stack([rows, starts, stops])[order]
    return np.split(runs, np.flatnonzero(np.diff(members[order])) + 1) if len(runs) else []


def hull(points):
    """The corners of the convex hull of points [n,2], in order."""
    ordered = sorted(map(tuple, points.tolist()))
    halves = []
    for way in (ordered, ordered[::-1]):
        half = []
        for x, y in way:
            while len(half) > 1 and (half[-1][0] - half[-2][0]) * (y - half[-2][1]) <= (half[-1][1] - half[-2][1]) * (x - half[-2][0]):
                half.pop()
            half.append((x, y))
        halves += half[:-1]
    return np.array(halves, np.float64)


def smallest_rectangle(corners):
    """Centre, half of the side along the text, half of the side down, of the smallest rectangle around a convex hull.

    One of its sides lies on an edge of the hull. Text runs along the side that is closest to the horizontal.
    """
    edges = np.roll(corners, -1, axis=0) - corners
    along = edges / np.hypot(edges[:, 0], edges[:, 1])[:, np.newaxis]
    # a quarter turn at most, so that "along" is within 45° of the horizontal and "down" follows from it
    steep = np.abs(along[:, 1]) > np.abs(along[:, 0])
    along[steep] = along[steep][:, ::-1] * (1, -1)
    along *= np.sign(along[:, :1])
    down = along[:, ::-1] * (-1, 1)
    across, below = along @ corners.T, down @ corners.T
    widths, heights = np.ptp(across, axis=1), np.ptp(below, axis=1)
    best = int(np.argmin(widths * heights))
    centre = along[best] * (across[best].min() + widths[best] / 2) + down[best] * (below[best].min() + heights[best] / 2)
    return centre, along[best] * widths[best] / 2, down[best] * heights[best] / 2
